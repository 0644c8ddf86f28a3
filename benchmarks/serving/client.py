"""A small HTTP client for streams: little work a piece, so that what is measured is the server.

Connections are kept; every server-sent event is noted with the second at which it was whole.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

IsToken = Callable[[bytes], bool]


class AskFailed(Exception):
    """The server refused, hung up, or ended a stream with an error; the message says what it told."""


@dataclass(slots=True)
class Ask:
    """A request, encoded once.

    Attributes:
        is_token: whether an event brings new text.
    """

    head: bytes
    body: bytes
    is_token: IsToken

    @classmethod
    def post(cls, url: str, body: object, is_token: IsToken, **headers: str) -> Ask:
        """A POST of JSON."""
        content = json.dumps(body).encode()
        lines = [
            f"POST {urlsplit(url).path} HTTP/1.1",
            f"Host: {urlsplit(url).netloc}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        return cls("\r\n".join(lines).encode() + b"\r\n\r\n", content, is_token)


@dataclass(slots=True)
class Heard:
    """An answer; all times in seconds from the request's last byte.

    Attributes:
        first: until the first event with new text; nan where there was none.
        whole: until the end.
        tokens_at: of each event with new text.
        events: the events, or the one body of an answer that isn't a stream.
        began: on the monotonic clock.
    """

    began: float
    first: float = float("nan")
    whole: float = 0.0
    tokens_at: list[float] = field(default_factory=list)
    events: list[bytes] = field(default_factory=list)


class Connection:
    """One kept-alive connection; one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, ask: Ask, *, keep: bool = False) -> Heard:
        """Send it and read the answer to its end.

        Args:
            keep: keep the events.

        Raises:
            AskFailed: it isn't a 200, or ends early.
        """
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        assert self._reader is not None
        self._writer.write(ask.head + ask.body)
        heard = Heard(time.perf_counter())
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            lower = head.lower()
            if b"transfer-encoding: chunked" in lower:
                await self._chunks(ask, heard, keep or status != 200)
            else:
                length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
                heard.events.append(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            raise AskFailed(f"the server hung up: {error}") from error
        heard.whole = time.perf_counter() - heard.began
        if status != 200:
            raise AskFailed(f"{status}: {b' '.join(heard.events)[:300]!r}")
        return heard

    async def _chunks(self, ask: Ask, heard: Heard, keep: bool) -> None:
        assert self._reader is not None
        rest = b""
        while length := int((await self._reader.readuntil(b"\r\n"))[:-2], 16):
            rest += (await self._reader.readexactly(length + 2))[:-2]
            now = time.perf_counter() - heard.began
            *events, rest = rest.split(b"\n\n")
            for event in events:
                if keep:
                    heard.events.append(event)
                if event.startswith(b"event: error") or event.startswith(b'data: {"error"'):
                    raise AskFailed(event.decode(errors="replace")[:300])
                if ask.is_token(event):
                    heard.tokens_at.append(now)
                    if len(heard.tokens_at) == 1:
                        heard.first = now
        if rest:
            heard.events.append(rest)
        await self._reader.readexactly(2)

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            with suppress(RuntimeError):
                self._writer.close()
        self._reader = self._writer = None


def openai_token(event: bytes) -> bool:
    """Whether a `chat.completion.chunk` brings text."""
    at = event.find(b'"content":')
    return at >= 0 and not event[at + 10 :].lstrip().startswith((b'""', b"null"))


def pair_token(event: bytes) -> bool:
    """Whether an event of `POST /v1/pairs` brings text."""
    return event.startswith(b"event: delta")


async def closed_loop(url: str, asks: Iterator[Ask], *, workers: int, count: int, keep: bool = False) -> list[Heard]:
    """`count` requests, `workers` at a time, each worker on a connection of its own.

    Raises:
        AskFailed: of the first that failed.
    """
    found: list[Heard] = []
    left = count

    async def work() -> None:
        nonlocal left
        connection = Connection(url)
        try:
            while left > 0:
                left -= 1
                found.append(await connection.ask(next(asks), keep=keep))
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return found
