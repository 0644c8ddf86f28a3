"""Serving's own failures, each with the HTTP status and the remedy that a user is told.

ServeError
├── BadRequest          400
├── NotAuthorised       401
├── NotFound            404
├── Conflict            409
├── Misdirected         421
├── Unreadable          422
├── Overloaded          429
├── NotReady            503
└── DeadlinePassed      504
"""

from __future__ import annotations


class ServeError(Exception):
    """Base of serving's failures; the message is fit for a user and names the remedy."""

    status = 500
    title = "Internal error"
    slug = "internal-error"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class BadRequest(ServeError):
    """The request can't be understood."""

    status, title, slug = 400, "Bad request", "bad-request"


class NotAuthorised(ServeError):
    """The operator's token is missing or wrong."""

    status, title, slug = 401, "Operator token needed", "operator-token-needed"


class NotFound(ServeError):
    """The thing named isn't there."""

    status, title, slug = 404, "Not found", "not-found"


class Conflict(ServeError):
    """The state of things doesn't allow it."""

    status, title, slug = 409, "Conflict", "conflict"


class Misdirected(ServeError):
    """The request names a host that this serving doesn't answer for."""

    status, title, slug = 421, "Not a trusted host", "not-a-trusted-host"


class Unreadable(ServeError):
    """The body is wrong in more places than are worth telling."""

    status, title, slug = 422, "Invalid request", "invalid-request"


class Overloaded(ServeError):
    """Too many requests are being answered."""

    status, title, slug = 429, "Too many requests", "too-many-requests"


class NotReady(ServeError):
    """Serving is starting or has lost its engine or ledger."""

    status, title, slug = 503, "Not ready", "not-ready"


class DeadlinePassed(ServeError):
    """The answer took too long."""

    status, title, slug = 504, "Deadline passed", "deadline-passed"
