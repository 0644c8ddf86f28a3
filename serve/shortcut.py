"""The way of plainly good requests to the endpoints asked most: past the router and what FastAPI puts around it.

Five layers lie between our own middleware and an endpoint, each with a coroutine, a context or a wrapped `send` of its
own; for a vote they cost more than everything that the endpoint does on the event loop.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import faults
from serve.quick_route import QuickRoute


class Shortcut:
    """A middleware, the innermost of ours; what isn't plainly good for a `QuickRoute` goes on to `app`."""

    def __init__(self, app: ASGIApp, *, routes: list[QuickRoute]) -> None:
        self._app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        earlier = scope.get("route")
        scope["route"] = route  # for the log line and the counters
        try:
            response = await route.quickly(request)
        except faults.HANDLED as error:
            response = await faults.answer(request, error)
        if response is None:
            scope["route"] = earlier
            await self._app(scope, _again(await request.body(), receive), send)
            return
        await response(scope, receive, send)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already once more, and then goes on with `receive`."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
