"""What happens around every request: id, canonical log line, metrics, trusted hosts, body limit, security headers,
last-resort error.

Pure ASGI, so that a stream's chunks pass through untouched.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import ServeConfig
from serve.errors import Misdirected, NotAuthorised, ServeError
from serve.exchange import Exchange
from serve.faults import Fault, fault_of, unexpected_fault
from serve.hosts import TrustedHosts
from serve.http import header
from serve.identity import require_operator
from serve.metrics import Metrics
from serve.streams import ClientGone, StalledReader

ROLLOUTS = "/v1/rollouts"
_ROLLOUT_BODY_FACTOR = 16
log = structlog.get_logger(__name__)


class RequestContext:
    """The outermost layer of ours; inside it every failure already is an answer."""

    def __init__(
        self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics, operator_token: str, hosts: TrustedHosts
    ) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics
        self._operator_token = operator_token
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._config, self._metrics)
        if not self._hosts.trust(scope):
            exchange.refuse(
                Misdirected("The Host header's name isn't trusted here; if it is yours, add it to serve.trusted_hosts.")
            )
        elif scope["path"] == ROLLOUTS:
            exchange.expect_operator(self._operator_token)
        await exchange.run(self._app)


class _Exchange(Exchange):
    """One request and its answer on their way through ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServeConfig, metrics: Metrics) -> None:
        super().__init__(scope, metrics)
        self._receive = receive
        self._send = send
        self._read_bytes = 0
        self._complete = False
        self._refused: Fault | None = None
        self._body_limit = config.max_body_bytes
        self._body_whole = False
        self._head = scope["method"] == "HEAD"
        self._piece_s, self._body_s = config.stalled_client_s, config.request_timeout_s
        self._length = header(scope, b"content-length") or ""

    def expect_operator(self, operator_token: str) -> None:
        """Take larger bodies, but from the operator alone: reading so much JSON takes everybody's time."""
        try:
            require_operator(header(self.scope, b"authorization") or "", operator_token)
        except NotAuthorised as error:
            self.refuse(error)
        else:
            self._body_limit *= _ROLLOUT_BODY_FACTOR

    def refuse(self, error: ServeError) -> None:
        """Answer this, whatever was asked, and read no body."""
        self._refused = fault_of(error)

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
        if self._length.isdecimal() and int(self._length) > self._body_limit:
            self._refused = self._refused or self._too_large()
        if self._refused is not None:
            await self._refuse(self._refused)
            return
        try:
            await self._ask(app)
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

    async def _ask(self, app: ASGIApp) -> None:
        """HEAD is asked as GET: what can be got can be asked about, and the body is kept back on its way out."""
        if not self._head:
            await app(self.scope, self._limited_receive, self._noted_send)
            return
        asked = {**self.scope, "method": "GET"}
        try:
            await app(asked, self._limited_receive, self._noted_send)
        finally:
            self.scope["route"] = asked.get("route")  # for the log line and the counters

    async def _limited_receive(self) -> Message:
        message = await (self._receive() if self._body_whole else self._next_piece())
        if message["type"] == "http.disconnect":
            self.hung_up = not self._complete
        self._read_bytes += len(message.get("body", b""))
        if self._read_bytes > self._body_limit:
            raise HTTPException(413, self._too_large().detail)
        return message

    async def _next_piece(self) -> Message:
        """More of the body, which must come steadily and be whole within a request's deadline."""
        left = self._body_s - (time.perf_counter() - self._began)
        try:
            async with asyncio.timeout(min(self._piece_s, left)):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, "The body did not come whole in time; send it again, in one go.") from error
        self._body_whole = not message.get("more_body", False)
        return message

    async def _noted_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = self.decorated(message["headers"])
        elif message["type"] == "http.response.body":
            if self._head:
                message["body"] = b""
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
