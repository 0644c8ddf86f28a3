"""What happens around every request: id, canonical log line, metrics, body limit, security headers, last-resort error.

Pure ASGI, so that a stream's chunks pass through untouched.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import ServeConfig
from serve.faults import Fault, unexpected_fault
from serve.http import header
from serve.metrics import Metrics
from serve.streams import ClientGone, StalledReader

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_ROLLOUT_BODY_FACTOR = 16
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_EVERYWHERE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"cache-control", b"no-store"),
)
"""Headers of every answer that doesn't say otherwise."""
_ids = random.Random()  # noqa: S311  request ids are to differ, not to be secret
"""Asking the kernel for each id would cost a system call, and the interpreter's lock."""
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


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServeConfig, metrics: Metrics) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._metrics = metrics
        self._began = time.perf_counter()
        self._status = 0
        self._sent_bytes = 0
        self._read_bytes = 0
        self._hung_up = False
        self._stalled = False
        self._complete = False
        self._failed = False
        factor = _ROLLOUT_BODY_FACTOR if scope["path"] == "/v1/rollouts" else 1
        self._body_limit = config.max_body_bytes * factor
        given = header(scope, b"x-request-id")
        self._id = given if _REQUEST_ID.fullmatch(given) else f"{_ids.getrandbits(128):032x}"
        self._length = header(scope, b"content-length")
        state: dict[str, Any] = dict(scope.get("state") or {})
        scope["state"] = state | {"request_id": self._id, "log": {}}

    async def run(self, app: ASGIApp) -> None:
        self._metrics.http_in_flight.inc()
        try:
            bound = structlog.contextvars.bind_contextvars(request_id=self._id)
            try:
                await self._answer(app)
            finally:
                structlog.contextvars.reset_contextvars(**bound)
        finally:
            self._metrics.http_in_flight.dec()
            self._account()

    async def _answer(self, app: ASGIApp) -> None:
        if self._length.isdigit() and int(self._length) > self._body_limit:
            await self._refuse(self._too_large())
            return
        try:
            await app(self._scope, self._limited_receive, self._noted_send)
        except ClientGone:
            self._hung_up = True
        except StalledReader as error:  # returning without the answer's end makes the server hang up
            self._stalled = True
            self._metrics.stalled_clients.inc()
            log.warning("hung up on a client", reason=str(error), path=self._scope["path"])
        except Exception:  # the boundary: a defect is logged with its traceback and answered without it
            self._failed = True
            log.exception("unexpected error", path=self._scope["path"])
            if self._status:
                raise
            await self._refuse(unexpected_fault())

    async def _limited_receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._hung_up = not self._complete
        self._read_bytes += len(message.get("body", b""))
        if self._read_bytes > self._body_limit:
            raise HTTPException(413, self._too_large().detail)
        return message

    async def _noted_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = self._decorated(message["headers"])
        elif message["type"] == "http.response.body":
            self._sent_bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def _decorated(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        decorated = list(headers)
        there = {name for name, _ in decorated}
        decorated += [each for each in _EVERYWHERE if each[0] not in there]
        decorated.append((b"x-request-id", self._id.encode("latin-1")))
        cookie = self._scope["state"].get("set_cookie")
        if cookie is not None:
            decorated.append((b"set-cookie", cookie.encode("latin-1")))
        return decorated

    async def _refuse(self, fault: Fault) -> None:
        response = fault.response(self._scope["path"], self._id)
        await response(self._scope, self._receive, self._noted_send)

    def _too_large(self) -> Fault:
        return Fault(
            413, "Body too large", "body-too-large", f"The body may have {self._body_limit} bytes at most; send less."
        )

    def _account(self) -> None:
        route = getattr(self._scope.get("route"), "path", None) or "unmatched"
        method = self._scope["method"] if self._scope["method"] in _METHODS else "OTHER"
        took = time.perf_counter() - self._began
        status = self._status or 499
        self._metrics.http_requests.labels(method, route, str(status)).inc()
        self._metrics.http_seconds.labels(method, route).observe(took)
        if route in _QUIET and (status < 500 or status == 503):
            return
        log.info(
            "request",
            method=method,
            route=route,
            status=status,
            seconds=round(took, 4),
            bytes=self._sent_bytes,
            hung_up=self._hung_up and not self._failed,
            stalled=self._stalled,
            request_id=self._id,
            **self._scope["state"]["log"],
        )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
