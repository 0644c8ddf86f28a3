"""What happens around every request: id, canonical log line, metrics, body limit, security headers, last-resort error.

Pure ASGI, so that a stream's chunks pass through untouched.
"""

from __future__ import annotations

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import ServeConfig
from serve.exchange import Exchange
from serve.faults import Fault, unexpected_fault
from serve.http import header
from serve.metrics import Metrics
from serve.streams import ClientGone, StalledReader

_ROLLOUT_BODY_FACTOR = 16
log = structlog.get_logger(__name__)


class RequestContext:
    """The outermost layer of ours; inside it every failure already is an answer."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(scope, receive, send, self._config, self._metrics).run(self._app)


class _Exchange(Exchange):
    """One request and its answer on their way through ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServeConfig, metrics: Metrics) -> None:
        super().__init__(scope, metrics)
        self._receive = receive
        self._send = send
        self._read_bytes = 0
        self._complete = False
        factor = _ROLLOUT_BODY_FACTOR if scope["path"] == "/v1/rollouts" else 1
        self._body_limit = config.max_body_bytes * factor
        self._length = header(scope, b"content-length") or ""

    async def run(self, app: ASGIApp) -> None:
        self.begin()
        try:
            bound = structlog.contextvars.bind_contextvars(request_id=self.id)
            try:
                await self._answer(app)
            finally:
                structlog.contextvars.reset_contextvars(**bound)
        finally:
            self.end()

    async def _answer(self, app: ASGIApp) -> None:
        if self._length.isdigit() and int(self._length) > self._body_limit:
            await self._refuse(self._too_large())
            return
        try:
            await app(self.scope, self._limited_receive, self._noted_send)
        except ClientGone:
            self.hung_up = True
        except StalledReader as error:  # returning without the answer's end makes the server hang up
            self.stalled = True
            self._metrics.stalled_clients.inc()
            log.warning("hung up on a client", reason=str(error), path=self.scope["path"])
        except Exception:  # the boundary: a defect is logged with its traceback and answered without it
            self.failed = True
            log.exception("unexpected error", path=self.scope["path"])
            if self.status:
                raise
            await self._refuse(unexpected_fault())

    async def _limited_receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.hung_up = not self._complete
        self._read_bytes += len(message.get("body", b""))
        if self._read_bytes > self._body_limit:
            raise HTTPException(413, self._too_large().detail)
        return message

    async def _noted_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = self.decorated(message["headers"])
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def _refuse(self, fault: Fault) -> None:
        response = fault.response(self.scope["path"], self.id)
        await response(self.scope, self._receive, self._noted_send)

    def _too_large(self) -> Fault:
        return Fault(
            413, "Body too large", "body-too-large", f"The body may have {self._body_limit} bytes at most; send less."
        )
