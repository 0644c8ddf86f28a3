"""Uvicorn's HTTP protocol with limits: to what a client sends before a request is whole, and to how long that takes.

Uvicorn reads a request's head for as long as it comes and as much of it as comes: a few thousand connections that say
half a line each take all of a process's files, and one that sends headers without end takes its memory. So do those
that ask and ask and never read what they are answered. Bodies have their limits further in (`serve.middleware`), and so
have streams (`serve.streams`).
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import structlog

from serve.direct_protocol import DirectProtocol
from serve.one_write import Gathering

HEAD_S = 30.0
"""Seconds for a head, or for the rest of a request that was answered before it was whole."""
HEAD_BYTES = 64 * 1024
"""Bytes of a request beside its body; what comes in one piece (a quarter of a megabyte at most) is looked at whole."""
_FRAMING = 8
"""Bytes that a byte of body may come with: a chunk for each takes six."""
AHEAD = 128
"""Requests that may wait for the answer to one before them. A quarter of a megabyte holds thousands, and each takes
kilobytes once it is parsed; browsers and proxies send none ahead."""
_BODY = frozenset({b"content-length", b"transfer-encoding"})
log = structlog.get_logger(__name__)


class Refused(Exception):
    """What can't be gone on with: ends the parsing, and uvicorn refuses as it refuses what isn't HTTP."""


class Door(DirectProtocol):
    """Hangs up on who is too slow or sends too much. The outermost: it hears all that the parser tells.

    Args:
        stalled_s: `serve.stalled_client_s`. Who takes nothing of an answer for twice as long is hung up on; a stream's
            own watch, which counts and tells more, comes first.
    """

    _timer: asyncio.TimerHandle | None = None
    _watching: asyncio.TimerHandle | None = None
    _taken = 0
    _refusal: str | None = None
    _deaf = False
    _in_head = False
    _in_message = False
    _left = HEAD_BYTES

    def __init__(self, *args: Any, stalled_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stalled_s = stalled_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def on_close(self) -> None:
        """A connection that is closed stays for as long as something is left to send: watch that it gets less."""
        self._watch()

    def eof_received(self) -> None:
        """The client asks no more, and the transport closes as if it had been told to."""
        super().eof_received()
        self._watch()

    def pause_writing(self) -> None:
        """The client hasn't taken what is there: watch that it does."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_watching()

    def data_received(self, data: bytes) -> None:
        """Count, and wait for the rest of a head that came in part, or for one where something else came."""
        if self._deaf:
            return
        self._left -= len(data)
        super().data_received(data)
        if self._left < 0 and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")
        elif self._in_head or self._idle:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """Refuse and hang up."""
        super().send_400_response(self._refusal or msg)

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= AHEAD:
            self._refuse(f"No more than {AHEAD} requests may wait for an answer; read what you are answered first.")
        self._in_head = self._in_message = True
        self._left = HEAD_BYTES
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head = False
        self._stop_waiting()
        other = self.parser.should_upgrade() and not self._should_upgrade()
        if other and any(name in _BODY and value != b"0" for name, value in self.headers):
            self._refuse("A body can't come with the header Upgrade: only WebSocket is known here; leave it out.")
        super().on_headers_complete()
        if other:  # the parser takes whatever follows for a new request, were it the body that a proxy has let through
            self._deaf = True
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._left += _FRAMING * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._in_message = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered, perhaps before it was whole: too large, say, or refused unread."""
        super().on_response_complete()
        if self._in_message:
            self._wait()

    def _refuse(self, refusal: str) -> None:
        self._refusal = refusal
        raise Refused(refusal)

    @property
    def _idle(self) -> bool:
        """Nothing is being asked, and nothing is to be answered. Uvicorn ends its own wait at each byte that comes."""
        return not self._in_message and (self.cycle is None or self.cycle.response_complete)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        if self._watching is None:
            self._taken = self._gathering.taken
            self._watching = self.loop.call_later(2 * self._stalled_s, self._look)

    def _look(self) -> None:
        self._watching = None
        if self._gathering.taken > self._taken:
            self._watch()
        else:
            log.warning("hung up on a client that doesn't read", seconds=2 * self._stalled_s)
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    @property
    def _gathering(self) -> Gathering:
        return cast(Gathering, self.transport)
