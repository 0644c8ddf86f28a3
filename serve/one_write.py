"""Uvicorn's HTTP protocol, but for one thing: what is written in one turn of the event loop goes out in one piece.

Uvicorn writes an answer's head and its body apart, and uvloop sends each at once: two system calls, two packets and two
wake-ups of the client for an answer of three hundred bytes. They were a seventh of what a vote costs the loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

AT_ONCE = 64 * 1024
"""Bytes that are kept until the turn's end at most; from there on the transport's own high-water mark counts."""


class OneWrite(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, with a transport that gathers."""
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type]


class Gathering:
    """A transport that gathers what is written until the loop's turn ends; all else is the transport's own.

    A stream's chunk leaves in the turn in which it is written, as before.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0

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
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if not self._held:
            return
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held, self._size = [], 0
        if not self._transport.is_closing():  # the client may have gone within the turn
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
