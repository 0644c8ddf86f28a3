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
        pulse = _Pulse(send, self._patience, self._keep_alive_s)
        writer = asyncio.create_task(self._write(pulse, send))
        watcher = asyncio.create_task(_gone(receive))
        ends: set[asyncio.Future[Any]] = {writer, watcher, pulse.lost}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
            elif pulse.lost.done():
                raise StalledReader(pulse.lost.result())
        finally:
            pulse.stop()
            await _stop(writer, watcher)

    async def _write(self, pulse: _Pulse, send: Send) -> None:
        async with aclosing(self._content) as content:
            async for body in content:
                await pulse.send(body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pulse:
    """Sends a stream's pieces, and looks after it by one timer that hardly ever fires: a token costs no timer.

    When nothing was sent for a while it sends a comment, so that proxies keep the connection.

    Attributes:
        lost: done, with the reason, once the client has taken too long.
    """

    def __init__(self, send: Send, patience: Patience, keep_alive_s: float) -> None:
        self._send = send
        self._patience = patience
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._began = self._last = self._loop.time()
        self._sending = 0
        self._ping: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._timer = self._loop.call_later(self._longest, self._look)

    async def send(self, body: bytes) -> None:
        self._last = self._loop.time()
        self._sending += 1
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending -= 1

    def stop(self) -> None:
        self._timer.cancel()
        self.lost.cancel()
        if self._ping is not None:
            self._ping.cancel()

    @property
    def _longest(self) -> float:
        """Seconds between two looks at most, so that none comes later than what it is to see."""
        return min(self._keep_alive_s, self._patience.send_s, self._patience.whole_s)

    def _look(self) -> None:
        now, patience = self._loop.time(), self._patience
        over, quiet = self._began + patience.whole_s - now, now - self._last
        if over <= 0:
            self.lost.set_result(f"the answer wasn't taken within {patience.whole_s:.0f} s")
            return
        if self._sending and quiet >= patience.send_s:
            self.lost.set_result(f"the client read nothing for {patience.send_s:.0f} s")
            return
        if not self._sending and quiet >= self._keep_alive_s:
            self._ping = self._loop.create_task(self.send(KEEP_ALIVE))
            quiet = 0.0
        due = (patience.send_s if self._sending else self._keep_alive_s) - quiet
        self._timer = self._loop.call_later(min(due, self._longest, over), self._look)


async def until(deadline: float, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Items of the source; its iterator is closed when this one is.

    Args:
        deadline: on the running loop's clock.

    Raises:
        DeadlinePassed: an item wasn't there in time.
    """
    alarm = _Alarm(deadline)
    try:
        while True:
            try:
                with alarm:
                    item = await anext(source)
            except StopAsyncIteration:
                return
            yield item
    finally:
        alarm.stop()
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


class _Alarm:
    """`asyncio.timeout_at` for a block that is entered again and again: one timer for all of them.

    Each entry notes the task that waits, since a generator may be driven by one task after another.
    """

    def __init__(self, deadline: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(deadline, self._ring)
        self._rang = self._broke_in = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def __enter__(self) -> None:
        if self._rang:
            raise self._passed()
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task is not None else 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        task, self._task = self._task, None
        if not self._broke_in or task is None:
            return
        self._broke_in = False
        ours = task.uncancel() <= self._cancelling  # else somebody else has cancelled it as well, and goes first
        if ours and kind is asyncio.CancelledError:
            raise self._passed() from error

    def stop(self) -> None:
        """It will not ring any more."""
        self._timer.cancel()

    def _ring(self) -> None:
        self._rang = True
        if self._task is not None:
            self._broke_in = True
            self._task.cancel()

    @staticmethod
    def _passed() -> DeadlinePassed:
        return DeadlinePassed("The answer took too long and was stopped; ask for fewer tokens.")


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
