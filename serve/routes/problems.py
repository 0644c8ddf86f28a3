"""The shape of problem details, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class FieldProblem(BaseModel):
    """What is wrong at one place of the body."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """An RFC 9457 problem detail; `detail` names the remedy."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[FieldProblem] | None = None


_CONTENT: dict[str, Any] = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
}
_MEANING = {
    400: "The request can't be understood",
    401: "The operator's token is missing or wrong",
    403: "Not yours",
    404: "Not there",
    409: "The state of things doesn't allow it",
    413: "The body is too large",
    422: "A field is wrong",
    429: "Too many requests; see Retry-After",
    500: "A defect",
    503: "Not ready; see Retry-After",
    504: "Deadline passed",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning} | _CONTENT for status, meaning in _MEANING.items()
}
"""Responses of every route of ours that may fail."""


class OpenAIError(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """OpenAI's error object."""

    error: OpenAIError


OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": _MEANING[status], "model": OpenAIErrorBody}
    for status in (400, 404, 413, 429, 500, 503, 504)
}
"""Responses of the OpenAI-compatible routes that may fail."""
