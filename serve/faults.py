"""Every failure becomes an answer here: which status, which title, in which of the two error formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from feedback.ledger.errors import (
    LedgerError,
    LedgerUnavailable,
    NotYourConversation,
    NotYourPair,
    PairConflict,
    ReleaseConflict,
    UnfitVote,
    UnknownPair,
    VoteConflict,
)
from serve.engines.base import (
    AdapterLoadFailed,
    AdapterNotLoaded,
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidSampling,
    NoRoomForAdapter,
    PromptTooLong,
)
from serve.errors import ServeError
from serve.http import (
    FastJSON,
    ProblemJSON,
    openai_error_body,
    problem_body,
    request_id,
    retry_header,
    wants_openai_errors,
)
from serve.text import printable, without_addresses

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure as the user will see it."""

    status: int
    title: str
    slug: str
    detail: str
    retry_after_s: float | None = None
    param: str | None = None
    code: str | None = None
    errors: tuple[dict[str, str], ...] = ()

    def problem(self, instance: str = "") -> dict[str, Any]:
        """As a problem detail."""
        more = {"errors": list(self.errors)} if self.errors else {}
        return problem_body(
            status=self.status, title=self.title, slug=self.slug, detail=self.detail, instance=instance, **more
        )

    def openai(self) -> dict[str, Any]:
        """As OpenAI's error object."""
        return openai_error_body(status=self.status, message=self.detail, param=self.param, code=self.code)

    def response(self, path: str, instance: str) -> Response:
        """In the format that the path's clients expect."""
        headers = dict(retry_header(self.retry_after_s))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if wants_openai_errors(path):
            return FastJSON(self.openai(), self.status, headers)
        return ProblemJSON(self.problem(instance), self.status, headers)


_ENGINE: dict[type[EngineError], tuple[int, str, str, str | None]] = {
    EngineUnavailable: (503, "Engine unavailable", "engine-unavailable", None),
    EngineOverloaded: (429, "Engine overloaded", "engine-overloaded", "rate_limit_exceeded"),
    PromptTooLong: (400, "Prompt too long", "prompt-too-long", "context_length_exceeded"),
    InvalidSampling: (400, "Invalid sampling parameter", "invalid-sampling", "invalid_value"),
    AdapterNotLoaded: (404, "Adapter not loaded", "adapter-not-loaded", "model_not_found"),
    AdapterLoadFailed: (409, "Adapter refused by the engine", "adapter-refused", None),
    NoRoomForAdapter: (409, "No room for the adapter", "no-room-for-adapter", None),
}
_LEDGER: dict[type[LedgerError], tuple[int, str, str]] = {
    UnknownPair: (404, "Unknown pair", "unknown-pair"),
    NotYourPair: (403, "Somebody else's pair", "not-your-pair"),
    UnfitVote: (422, "Vote doesn't fit", "vote-doesnt-fit"),
    VoteConflict: (409, "Already voted", "already-voted"),
    NotYourConversation: (403, "Somebody else's conversation", "not-your-conversation"),
    PairConflict: (409, "Pair exists", "pair-exists"),
    ReleaseConflict: (409, "Release moved", "release-moved"),
}


def fault_of(error: Exception) -> Fault | None:
    """The fault that a known failure stands for; None for the unexpected."""
    if isinstance(error, ServeError):
        code = {429: "rate_limit_exceeded", 404: "model_not_found"}.get(error.status)
        return Fault(error.status, error.title, error.slug, error.detail, error.retry_after_s, code=code)
    if isinstance(error, EngineError):
        return _engine_fault(error)
    if isinstance(error, LedgerError):
        return _ledger_fault(error)
    if isinstance(error, HTTPException):
        return _http_fault(error)
    if isinstance(error, RequestValidationError):
        return validation_fault(error.errors(), error.body)
    return None


def unexpected_fault() -> Fault:
    """What a user hears of a defect: nothing but how to report it."""
    return Fault(
        500,
        "Internal error",
        "internal-error",
        "Something went wrong on our side. Try again; if it stays, give the operator the request id.",
    )


def _engine_fault(error: EngineError) -> Fault:
    detail = without_addresses(str(error))
    if detail != str(error):
        log.warning("trouble with the engine", reason=str(error))
    for kind, (status, title, slug, code) in _ENGINE.items():
        if isinstance(error, kind):
            retry = {429: getattr(error, "retry_after_s", 1.0), 503: 5.0}.get(status)
            return Fault(status, title, slug, detail, retry, code=code)
    return Fault(500, "Engine error", "engine-error", detail)


def _ledger_fault(error: LedgerError) -> Fault | None:
    if isinstance(error, LedgerUnavailable):
        log.warning("ledger unavailable", reason=str(error))  # with its address, which is not for everybody
        detail = "The votes' record is out of reach, so nothing was recorded. Try again in a few seconds."
        return Fault(503, "Ledger unavailable", "ledger-unavailable", detail, 5.0)
    for kind, (status, title, slug) in _LEDGER.items():
        if isinstance(error, kind):
            return Fault(status, title, slug, _sentence(str(error)))
    return None


def _http_fault(error: HTTPException) -> Fault:
    phrase = HTTPStatus(error.status_code).phrase
    hint = {
        404: "Nothing is here; /openapi.json lists every route (of OpenAI's, chat completions and models).",
        405: "This route doesn't take that method; /openapi.json lists what it takes.",
    }.get(error.status_code, str(error.detail))
    return Fault(error.status_code, phrase, phrase.lower().replace(" ", "-"), hint)


def validation_fault(errors: Sequence[Any], body: object = None) -> Fault:
    """What was wrong with a request, without echoing it.

    Args:
        body: what was sent, to tell its own names from those of the alternatives that were tried on it.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "not JSON")
        return Fault(400, "Invalid JSON", "invalid-json", f"The body is not valid JSON: {reason}.", code="invalid_json")
    if isinstance(body, bytes) and body and first["loc"] == ("body",):
        said = "The body isn't said to be JSON: send it with the header `Content-Type: application/json`."
        return Fault(422, "Invalid request", "invalid-request", said, code="invalid_value")
    listed = tuple({"pointer": _pointer(_place(e, body)), "detail": _said(e)} for e in errors[:20])
    cause = first.get("ctx", {}).get("error")
    param = getattr(cause, "param", None) or ".".join(_place(first, body)) or None
    param = param and printable(param)
    unknown = first["type"] == "extra_forbidden"
    detail = "; ".join(f"{e['pointer']}: {e['detail']}" if e["pointer"] else e["detail"] for e in listed[:3])
    message = f"Unknown parameter: '{param}'. Leave it out." if unknown else detail
    return Fault(
        422,
        "Invalid request",
        "invalid-request",
        message,
        param=param,
        code="unknown_parameter" if unknown else getattr(cause, "code", "invalid_value"),
        errors=listed,
    )


def _said(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _place(error: Any, body: object) -> list[str]:
    """Where in the request it was wrong, without the inner names of alternatives that pydantic puts in between."""
    where, *path = error["loc"]
    if where != "body":
        return [str(part) for part in path]
    found: list[str] = []
    at = body
    for number, part in enumerate(path, 1):
        missing = number == len(path) and error["type"] == "missing"
        if isinstance(at, dict) and (part in at or missing):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and 0 <= part < len(at):
            at = at[part]
        else:
            continue
        found.append(str(part))
    return found


def _pointer(place: Sequence[str]) -> str:
    return printable("".join(f"/{part}" for part in place))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


HANDLED = (ServeError, EngineError, LedgerError, HTTPException, RequestValidationError)
"""What `answer` knows; anything else is answered by the middleware as an internal error."""


async def answer(request: Request, error: Exception) -> Response:
    """The answer that stands for a failure."""
    fault = fault_of(error)
    if fault is None:  # pragma: no cover - only registered kinds come here
        raise error
    if wants_openai_errors(request.url.path) and fault.status == 422:
        fault = Fault(400, fault.title, fault.slug, fault.detail, param=fault.param, code=fault.code)
    response = fault.response(request.url.path, request_id(request))
    if fault.status == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """What the path takes; HEAD wherever GET is taken (`serve.middleware`)."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL:
            found |= route.methods or set()
    found = found or {"GET"}  # the pages' files
    return found | ({"HEAD"} if "GET" in found else set())


def install(app: FastAPI) -> None:
    """Register the handlers."""
    for kind in HANDLED:
        app.add_exception_handler(kind, answer)
