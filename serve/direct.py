"""The shortest way to a few endpoints: from a whole request to its answer without ASGI's messages between.

A vote's endpoint takes a fifth of the event loop's time for it; the rest was messages, wrappers and coroutines around
it (adr/0090). `serve.direct_protocol` brings requests here that came whole and are plainly good; what they are answered
doesn't depend on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve import faults
from serve.exchange import Exchange
from serve.hosts import TrustedHosts
from serve.metrics import Metrics
from serve.quick_route import QuickRoute

ANSWER = "hustings.answer"
"""The one message that is sent: an answer's `status`, `headers` and `body`."""
ASKED = "hustings.asked"
"""Where a scope holds the `QuickRoute` and the body, read as the route's model."""
log = structlog.get_logger(__name__)


class Direct:
    """ASGI, but that the body lies in the scope (`ASKED`) and the answer is sent as one message (`ANSWER`).

    Args:
        paths: the `QuickRoute`s that go this way; their endpoints answer in one piece.
    """

    def __init__(
        self, app: FastAPI, paths: Collection[str], metrics: Metrics, max_body_bytes: int, hosts: TrustedHosts
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes
        found: Sequence[QuickRoute] = [each for each in app.routes if isinstance(each, QuickRoute)]
        self._routes = {
            (method.encode(), route.path.encode()): route
            for route in found
            if route.path in paths
            for method in route.methods
        }

    def route(self, method: bytes, target: bytes) -> QuickRoute | None:
        """The route of this method and target (without a query); None where they go another way."""
        return self._routes.get((method, target))

    def read(self, route: QuickRoute, scope: Scope, body: bytes) -> BaseModel | None:
        """The body, if the request is plainly good: then it can go this way."""
        if len(body) > self._max_body_bytes or not self._hosts.trust(scope):
            return None
        return route.read(scope, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; `receive` is not asked."""
        exchange = Exchange(scope, self._metrics)
        exchange.begin()
        try:
            structlog.contextvars.bind_contextvars(request_id=exchange.id)  # until the task ends, and its context
            response = await self._answer(scope, exchange)
            exchange.status, exchange.sent_bytes = response.status_code, len(response.body)
            headers = exchange.decorated(response.raw_headers)
            await send({"type": ANSWER, "status": response.status_code, "headers": headers, "body": response.body})
        finally:
            exchange.end()

    async def _answer(self, scope: Scope, exchange: Exchange) -> Response:
        route, body = scope[ASKED]
        scope["app"], scope["route"] = self._app, route
        request = Request(scope)
        try:
            response: Response = await route.call(body, request)
            assert not isinstance(response, StreamingResponse), f"{route.path} answers in pieces, and can't go this way"
        except faults.HANDLED as error:
            return await faults.answer(request, error)
        except Exception:  # the boundary, as in `serve.middleware`
            exchange.failed = True
            log.exception("unexpected error", path=scope["path"])
            return faults.unexpected_fault().response(scope["path"], exchange.id)
        return response
