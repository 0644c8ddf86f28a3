"""Uvicorn's HTTP protocol, but for one thing: what is written in one turn of the event loop goes out in one piece.

Uvicorn writes an answer's head and its body apart, and uvloop sends each at once: two system calls, two packets and two
wake-ups of the client for an answer of three hundred bytes. They were a seventh of what a vote costs the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

AT_ONCE = 64 * 1024
"""Bytes that are kept until the turn's end at most; from there on the transport's own high-water mark counts."""


class OneWrite(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, with a transport that gathers."""
        super().connection_made(Gathering(transport, self.loop, self.on_close))  # type: ignore[arg-type]

    def on_close(self) -> None:
        """The connection ends as soon as the client has taken what was written."""


class Gathering:
    """A transport that gathers what is written until the loop's turn ends; all else is the transport's own.

    A stream's chunk leaves in the turn in which it is written, as before.

    Args:
        on_close: called when it was told to close; what was written may wait for the client even then.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, on_close: Callable[[], None] = lambda: None
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._on_close = on_close
        self._held: list[bytes] = []
        self._size = 0
        self._sent = 0

    def write(self, data: bytes) -> None:
        """Send with whatever else is written in this turn."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)
        self._size += len(data)
        if self._size >= AT_ONCE:
            self._send()

    def close(self) -> None:
        """Close when what was written has been sent."""
        if self._transport.is_closing():
            return
        self._send()
        self._transport.close()
        self._on_close()

    @property
    def taken(self) -> int:
        """Bytes that the network has taken so far."""
        return self._sent - self._transport.get_write_buffer_size()

    def _send(self) -> None:
        if not self._held:
            return
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held, self._size = [], 0
        if not self._transport.is_closing():  # the client may have gone within the turn
            self._sent += len(data)
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
