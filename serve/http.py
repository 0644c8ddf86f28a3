"""How answers look on the wire: JSON, RFC 9457 problem details, OpenAI's error object, server-sent events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

OPENAI_PREFIXES = tuple(
    f"/v1/{name}"
    for name in (
        "chat/", "models", "completions", "embeddings", "responses", "moderations", "files", "uploads", "batches",
        "images", "audio", "videos", "realtime", "fine_tuning", "vector_stores", "assistants", "threads",
        "conversations", "containers", "evals",
    )
)  # fmt: skip
"""Paths that OpenAI's clients ask, those that are not here among them: an error is then in words that they show."""
PROBLEM_TYPE_BASE = "https://hustings.invalid/problems/"
"""Problem types are names, not pages: `.invalid` never resolves."""


class FastJSON(Response):
    """JSON by orjson: quick, and NaN becomes null instead of invalid JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return orjson.dumps(content)


class ProblemJSON(FastJSON):
    """An RFC 9457 problem detail."""

    media_type = "application/problem+json"


def wants_openai_errors(path: str) -> bool:
    """Whether the path belongs to the OpenAI-compatible routes."""
    return path.startswith(OPENAI_PREFIXES)


def header(scope: Scope, name: bytes) -> str | None:
    """A request's header, its name in lower case; None where it is missing. For what every request is asked."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def request_id(request: Request) -> str:
    """The id that the middleware gave this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def problem_body(*, status: int, title: str, slug: str, detail: str, instance: str = "", **more: Any) -> dict[str, Any]:
    """The members of a problem detail; `more` are extension members."""
    body: dict[str, Any] = {"type": PROBLEM_TYPE_BASE + slug, "title": title, "status": status, "detail": detail}
    if instance:
        body["request_id"] = instance
    return body | more


def openai_error_body(
    *, status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def retry_header(retry_after_s: float | None) -> Mapping[str, str]:
    """A Retry-After header in whole seconds, at least one."""
    return {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event; the data is JSON on one line."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + orjson.dumps(data) + b"\n\n"
