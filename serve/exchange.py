"""One request and its answer, as they are noted: an id, headers of every answer, one log line, counters."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from typing import Any

import structlog
from starlette.types import Scope

from serve.http import header
from serve.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
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


class Exchange:
    """Begins when the request is there; `begin` and `end` go around its answering.

    Attributes:
        status: of the answer; 0 as long as none has begun.
        hung_up: the client left before its answer was whole.
        failed: a defect was met, of which a line of its own tells.
    """

    def __init__(self, scope: Scope, metrics: Metrics) -> None:
        self.scope = scope
        self.status = 0
        self.sent_bytes = 0
        self.hung_up = False
        self.stalled = False
        self.failed = False
        self._metrics = metrics
        self._began = time.perf_counter()
        given = header(scope, b"x-request-id")
        self.id = given if given and _REQUEST_ID.fullmatch(given) else f"{_ids.getrandbits(128):032x}"
        state: dict[str, Any] = dict(scope.get("state") or {})
        scope["state"] = state | {"request_id": self.id, "log": {}}

    def begin(self) -> None:
        """It is being answered."""
        self._metrics.http_in_flight.inc()

    def decorated(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """An answer's headers, with those of every answer."""
        decorated = list(headers)
        there = {name for name, _ in decorated}
        decorated += [each for each in _EVERYWHERE if each[0] not in there]
        decorated.append((b"x-request-id", self.id.encode("latin-1")))
        cookie = self.scope["state"].get("set_cookie")
        if cookie is not None:
            decorated.append((b"set-cookie", cookie.encode("latin-1")))
        return decorated

    def end(self) -> None:
        """It was answered: count it, and write its line."""
        self._metrics.http_in_flight.dec()
        route = getattr(self.scope.get("route"), "path", None) or "unmatched"
        method = self.scope["method"] if self.scope["method"] in _METHODS else "OTHER"
        took = time.perf_counter() - self._began
        status = self.status or 499
        self._metrics.http_requests_of(method, route, str(status)).inc()
        self._metrics.http_seconds_of(method, route).observe(took)
        if route in _QUIET and (status < 500 or status == 503):
            return
        log.info(
            "request",
            method=method,
            route=route,
            status=status,
            seconds=round(took, 4),
            bytes=self.sent_bytes,
            hung_up=self.hung_up and not self.failed,
            stalled=self.stalled,
            request_id=self.id,
            **self.scope["state"]["log"],
        )
