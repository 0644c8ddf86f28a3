"""A route for small bodies that come often: checked straight from their bytes, with FastAPI's own way for the rest."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from serve.deps import deps_of
from serve.errors import Unreadable
from serve.http import header

MOST_FAULTS = 100
"""Faults of a body that are told one by one. A megabyte holds some hundred thousand, and to word them all takes seconds
of everybody's time and a gigabyte."""
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class QuickRoute(APIRoute):
    """For endpoints of exactly `(body: Model, request: Request, deps: Deps)` that return a `Response`.

    A good JSON body is validated in one pass and the endpoint called at once; FastAPI's way to the same call costs more
    than a vote itself. Whatever isn't plainly good goes FastAPI's way, and is refused, worded and documented by it.
    """

    @cached_property
    def _model(self) -> type[BaseModel]:
        model: type[BaseModel] = get_type_hints(self.endpoint)["body"]
        return model

    def get_route_handler(self) -> Handler:
        """The handler; FastAPI calls this once a route."""
        careful = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await self.quickly(request) or await careful(request)

        return handle

    async def quickly(self, request: Request) -> Response | None:
        """The endpoint's answer; None where the body isn't plainly good, and it was not asked.

        Raises:
            Unreadable: the body has more faults than anybody would read.
        """
        if not _is_json(request.scope):
            return None
        try:
            content = await request.body()
        except ClientDisconnect as error:
            raise HTTPException(400, "The body did not come whole.") from error
        try:
            body = self._model.model_validate_json(content)
        except ValidationError as error:
            if error.error_count() > MOST_FAULTS:
                raise Unreadable(
                    f"The body is wrong in {error.error_count()} places; /openapi.json tells what it may hold."
                ) from None
            return None
        return await self.call(body, request)

    def read(self, scope: Scope, body: bytes) -> BaseModel | None:
        """The body, if it is said to be JSON and is as the endpoint's model wants it."""
        if not _is_json(scope):
            return None
        try:
            return self._model.model_validate_json(body)
        except ValidationError:
            return None

    async def call(self, body: BaseModel, request: Request) -> Response:
        """The endpoint's answer."""
        response: Response = await self.endpoint(body=body, request=request, deps=deps_of(request))
        return response


def _is_json(scope: Scope) -> bool:
    """Whether FastAPI would read the body as JSON."""
    kind = header(scope, b"content-type") or ""
    if kind == "application/json":
        return True
    main, _, sub = kind.partition(";")[0].strip().lower().partition("/")
    return main == "application" and "/" not in sub and (sub == "json" or sub.endswith("+json"))
