"""Who asks: a voter's opaque token (cookie or header) as a pseudonym, and the operator's bearer token."""

from __future__ import annotations

import hmac
import re
import secrets

from starlette.requests import Request, cookie_parser
from starlette.types import Scope

from feedback.identity import pseudonym
from serve.errors import BadRequest, NotAuthorised
from serve.http import header

COOKIE = "hustings_voter"
HEADER = b"x-hustings-voter"
_TOKEN = re.compile(r"[A-Za-z0-9_.:@+/=-]{1,128}")
_YEAR_S = 365 * 24 * 3600


def token_from(scope: Scope) -> str | None:
    """The voter's own token; None if they bring none. A header goes before a cookie; a malformed cookie is none.

    Raises:
        BadRequest: the header is malformed.
    """
    told = header(scope, HEADER)
    if told is not None:
        if _TOKEN.fullmatch(told) is None:
            raise BadRequest("X-Hustings-Voter must be 1 to 128 letters, digits or _.:@+/=- characters.")
        return told
    # Not http.cookies: it drops all cookies for one that it dislikes, and ports of one host share a browser's cookies.
    found = cookie_parser(header(scope, b"cookie") or "").get(COOKIE)
    return found if found is not None and _TOKEN.fullmatch(found) else None


def cookie_of(token: str, scope: Scope) -> str:
    """The Set-Cookie header that hands a token out for a year from now."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{COOKIE}={token}; Path=/; Max-Age={_YEAR_S}; HttpOnly; SameSite=Lax{secure}"


def voter_of(request: Request, secret: str) -> str:
    """The pseudonym of who asks.

    On first touch a new token is made, and the middleware hands it out. A cookie that comes back is handed out again,
    so that who comes at least once a year stays who they are.
    """
    token = token_from(request.scope)
    if token is None or header(request.scope, HEADER) is None:
        token = token or secrets.token_urlsafe(24)
        request.scope.setdefault("state", {})["set_cookie"] = cookie_of(token, request.scope)
    return pseudonym(secret, token)


def require_operator(authorization: str, operator_token: str) -> None:
    """Pass for the operator.

    Args:
        authorization: that header; empty where it is missing.

    Raises:
        NotAuthorised: the bearer token is missing or wrong.
    """
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), operator_token.encode()):
        raise NotAuthorised(
            "This needs `Authorization: Bearer <operator token>`; the token lies in secrets/operator_token of the data"
            " folder."
        )
