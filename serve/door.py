"""Uvicorn's HTTP protocol with limits: to what a client sends before a request is whole, and to how long that takes.

Uvicorn reads a request's head for as long as it comes and as much of it as comes: a few thousand connections that say
half a line each take all of a process's files, and one that sends headers without end takes its memory. Bodies have
their limits further in (`serve.middleware`).
"""

from __future__ import annotations

import asyncio

from serve.direct_protocol import DirectProtocol

HEAD_S = 30.0
"""Seconds for a head, or for the rest of a request that was answered before it was whole."""
HEAD_BYTES = 64 * 1024
"""Bytes of a request beside its body; what comes in one piece (a quarter of a megabyte at most) is looked at whole."""
_FRAMING = 8
"""Bytes that a byte of body may come with: a chunk for each takes six."""


class Door(DirectProtocol):
    """Hangs up on who is too slow or sends too much. The outermost: it hears all that the parser tells."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = False
    _in_message = False
    _left = HEAD_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count, and wait for the rest of a head that came in part."""
        self._left -= len(data)
        super().data_received(data)
        if self._left < 0 and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")
        elif self._in_head:
            self._wait()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = self._in_message = True
        self._left = HEAD_BYTES
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

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

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
