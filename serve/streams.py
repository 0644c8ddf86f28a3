"""Streaming to a client that may leave: whoever leaves stops the work behind the stream at once.

Plain asyncio cancellation is used, which is delivered once: the generators below can still await while they close.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.config import ServeConfig
from serve.errors import DeadlinePassed

T = TypeVar("T")
KEEP_ALIVE = b": still here\n\n"


class ClientGone(Exception):
    """The client hung up before the answer was ready; nobody hears what follows."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await the work; cancel it when the client hangs up. The request's body must have been read.

    Raises:
        ClientGone: the client left first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _stop(task, watcher)


async def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all sources as they come; closing it closes all of them, and a failure of one ends the others."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for only in source:
                yield only
        return
    queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(source, queue)) for source in sources]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        await _stop(*pumps)


class StalledReader(Exception):
    """The client takes its answer too slowly, or not at all: it is hung up on, and what it held is free again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream waits for its client, who holds a slot all the while.

    Attributes:
        send_s: seconds that the network may refuse to take one piece (a client that doesn't read fills its buffers).
        whole_s: seconds that the whole stream may last, so that nobody sips it byte by byte.
    """

    send_s: float
    whole_s: float


def patience(config: ServeConfig) -> Patience:
    """As configured: beyond the request's deadline a stream only waits for its client."""
    return Patience(config.stalled_client_s, config.request_timeout_s + config.stalled_client_s)


class EventStream(Response):
    """A server-sent-event answer; the client's leaving closes the generator while it waits, not at its next item.

    Raises:
        StalledReader: when it is called, and the client didn't take it in time; the generator is closed by then.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[bytes, None], *, patience: Patience, keep_alive_s: float = 15.0) -> None:
        super().__init__(None)
        self._content = content
        self._patience = patience
        self._keep_alive_s = keep_alive_s
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it or the client ends."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(_gone(receive))
        try:
            whole = self._patience.whole_s
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED, timeout=whole)
            if writer.done():
                writer.result()
            elif not watcher.done():
                raise StalledReader(f"the answer wasn't taken within {whole:.0f} s")
        finally:
            await _stop(writer, watcher)

    async def _write(self, send: Send) -> None:
        pulse = _Pulse(send, self._keep_alive_s, self._patience.send_s)
        pinger = asyncio.create_task(pulse.keep_alive())
        try:
            async with aclosing(self._content) as content:
                async for body in content:
                    await pulse.send(body)
        finally:
            await _stop(pinger)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pulse:
    """Sends a comment when nothing else was sent for a while, so that proxies keep the connection."""

    def __init__(self, send: Send, every_s: float, send_s: float) -> None:
        self._send = send
        self._every_s = every_s
        self._send_s = send_s
        self._last = asyncio.get_running_loop().time()

    async def send(self, body: bytes) -> None:
        self._last = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._send_s):
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError as error:
            raise StalledReader(f"the client read nothing for {self._send_s:.0f} s") from error

    async def keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._last
            if quiet >= self._every_s:
                await self.send(KEEP_ALIVE)
                quiet = 0.0
            await asyncio.sleep(self._every_s - quiet)


async def until(deadline: float, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Items of the source; its iterator is closed when this one is.

    Args:
        deadline: on the running loop's clock. The timer is set anew for each item, since a generator may be driven by
            one task after another.

    Raises:
        DeadlinePassed: an item wasn't there in time.
    """
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    item = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise DeadlinePassed("The answer took too long and was stopped; ask for fewer tokens.") from error
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def primed(stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Await the first item, so that what can fail early fails before the answer begins; then hand all items out."""
    try:
        first = await anext(stream)
    except BaseException:
        await stream.aclose()
        raise

    async def whole() -> AsyncGenerator[T, None]:
        async with aclosing(stream):
            yield first
            async for item in stream:
                yield item

    return whole()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pump(source: AsyncGenerator[T, None], queue: asyncio.Queue[T | Exception | None]) -> None:
    try:
        async with aclosing(source):
            async for item in source:
                queue.put_nowait(item)
    except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
