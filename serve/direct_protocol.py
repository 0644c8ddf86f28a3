"""Uvicorn's HTTP protocol, with a way around ASGI for requests that are whole and plainly good (`serve.direct`).

The parser is uvicorn's, and so is all that concerns a connection: pipelined requests, time-outs, shutting down. What
isn't there whole in the packet in which its head ends, or isn't plainly good, goes uvicorn's way as if nothing had
been tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import structlog
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

from serve.direct import ASKED, Direct
from serve.one_write import OneWrite
from serve.quick_route import QuickRoute

_PROXIES = frozenset({b"x-forwarded-proto", b"x-forwarded-for"})
"""Headers that uvicorn lets a proxy tell of its client by."""
log = structlog.get_logger(__name__)


class DirectProtocol(OneWrite):
    """For `uvicorn.Config(http=...)`, by way of `functools.partial`.

    Args:
        direct: knows which requests may go around.
        around: `direct` itself, within what looks at proxies' headers.
    """

    def __init__(self, *args: Any, direct: Direct, around: ASGIApp, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._direct = direct
        self._around = around
        self._route: QuickRoute | None = None
        self._body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Parse; what then waits for the rest of a body goes uvicorn's way."""
        super().data_received(data)
        if self._route is not None:
            self._route = None
            if not self.transport.is_closing():
                self._go_the_long_way()

    def on_headers_complete(self) -> None:
        """The head is there."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.limit_concurrency is not None or self.parser.should_upgrade():
            super().on_headers_complete()
            return
        self._route = self._direct.route(self.parser.get_method(), self.url)
        if self._route is None:
            super().on_headers_complete()
        else:
            self._body = []

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        if self._route is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        route, self._route = self._route, None
        if route is None:
            super().on_message_complete()
            return
        body = self._direct.read(route, cast(Scope, self.scope), b"".join(self._body))
        if body is None:
            self._go_the_long_way()
            super().on_message_complete()
        else:
            self._go_around(route, body)

    def _go_the_long_way(self) -> None:
        super().on_headers_complete()
        for some in self._body:
            super().on_body(some)

    def _go_around(self, route: QuickRoute, body: BaseModel) -> None:
        scope = cast(Scope, self.scope)
        version = self.parser.get_http_version()
        scope.update(method=self.parser.get_method().decode("ascii"), http_version=version, query_string=b"")
        scope.update({"path": self.root_path + route.path, "raw_path": self.url, ASKED: (route, body)})
        cycle = _Cycle(self, scope, keep_alive=version != "1.0" and self.parser.should_keep_alive())
        self.cycle = cast(RequestResponseCycle, cycle)
        proxied = any(name in _PROXIES for name, _ in self.headers)
        self._start_asgi_task(self.cycle, cast(Any, self._around if proxied else self._direct))


class _Unheard:
    def set(self) -> None:
        """Nobody waits: neither for more of the body nor for the client to go."""


class _Cycle:
    """Stands where uvicorn's own cycle does: as much of one as its protocol looks at."""

    message_event = _Unheard()

    def __init__(self, protocol: DirectProtocol, scope: Scope, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self._protocol = protocol
        self._scope = scope

    async def run_asgi(self, app: ASGIApp) -> None:
        """Answer the request; what goes wrong on the way costs the client its connection."""
        try:
            await app(self._scope, _receive, self._send)
        except Exception:  # the boundary: uvicorn would show a traceback; it is logged, and the connection ends below
            log.exception("an answer could not be sent", path=self._scope["path"])
        finally:
            if not self.response_complete:
                self._protocol.transport.close()

    async def _send(self, answer: Message) -> None:
        protocol = self._protocol
        if protocol.flow.write_paused and not self.disconnected:
            await protocol.flow.drain()
        if not self.disconnected:
            headers = [*protocol.server_state.default_headers, *answer["headers"]]
            protocol.transport.write(_as_http(answer["status"], headers, answer["body"], self.keep_alive))
        self.response_complete = True
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _as_http(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, keep_alive: bool) -> bytes:
    """The whole answer.

    Raises:
        RuntimeError: a header holds what would end it.
    """
    lines = [name + b": " + value for name, value in headers]
    if HEADER_VALUE_RE.search(b"".join(lines)):
        raise RuntimeError("Invalid HTTP header value.")
    end = b"\r\n\r\n" if keep_alive else b"\r\nconnection: close\r\n\r\n"
    return STATUS_LINE[status] + b"\r\n".join(lines) + end + body


async def _receive() -> Message:
    raise AssertionError("the whole request is in the scope")
