"""What a stream does with time: its deadline, its silence, and who breaks into it."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from feedback.contracts import Message
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.config import ServeConfig
from serve.engines.base import Chunk, GenerationRequest
from serve.errors import DeadlinePassed
from serve.pairs import PairAsk, run_pair
from serve.routes.pairs import event_bytes, wire
from serve.streams import KEEP_ALIVE, EventStream, Patience, _Alarm, until
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import ready_deps

PATIENT = Patience(send_s=5.0, whole_s=5.0)


class Source:
    """Gives numbers; the third only when told to.

    Attributes:
        go: set, and the third is there.
    """

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
            await self.go.wait()
            yield 3
        finally:
            self.closed = True


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_items_pass_and_the_source_is_closed_with_them() -> None:
    source = Source()
    source.go.set()
    assert [item async for item in until(soon(5), source.items())] == [1, 2, 3]
    assert source.closed


async def test_an_item_that_is_not_there_at_the_deadline_ends_the_stream() -> None:
    source, heard = Source(), []
    with pytest.raises(DeadlinePassed):
        async for item in until(soon(0.02), source.items()):
            heard.append(item)
    assert (heard, source.closed) == ([1, 2], True)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_deadline_that_passes_between_two_items_is_noticed_at_the_next() -> None:
    source = Source()
    stream = until(soon(0.01), source.items())
    assert await anext(stream) == 1
    await asyncio.sleep(0.03)
    with pytest.raises(DeadlinePassed):
        await anext(stream)
    assert source.closed


async def test_each_item_may_be_awaited_by_another_task() -> None:
    stream = until(soon(0.05), Source().items())
    assert [await asyncio.create_task(anext(stream)) for _ in range(2)] == [1, 2]
    third: asyncio.Task[int] = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    with pytest.raises(DeadlinePassed):
        await third


async def test_who_is_cancelled_from_outside_stays_cancelled_though_the_deadline_passes_too() -> None:
    alarm = _Alarm(soon(5))

    async def wait() -> None:
        with alarm:
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    alarm._ring()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    alarm.stop()


async def heard_of(stream: EventStream) -> list[bytes]:
    heard: list[bytes] = []

    async def send(message: Any) -> None:
        heard.append(message.get("body", b""))

    await stream({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type]
    return heard[1:]


async def test_a_silent_stream_sends_comments_and_a_talking_one_does_not() -> None:
    async def pieces(pause: float) -> AsyncGenerator[bytes, None]:
        for _ in range(4):
            await asyncio.sleep(pause)
            yield b"x"

    silent = await heard_of(EventStream(pieces(0.06), patience=PATIENT, keep_alive_s=0.02))
    assert silent.count(KEEP_ALIVE) >= 4
    assert [piece for piece in silent if piece != KEEP_ALIVE] == [b"x"] * 4 + [b""]
    talking = await heard_of(EventStream(pieces(0.01), patience=PATIENT, keep_alive_s=5.0))
    assert talking == [b"x"] * 4 + [b""]


async def test_a_defect_of_the_content_comes_through() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await heard_of(EventStream(broken(), patience=PATIENT))


class Stepping(FakeEngine):
    """Gives both answers' tokens of a step at once, as vLLM does; the last step brings text for one of them only."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        for word in ("one ", "two "):
            await asyncio.sleep(0)
            yield Chunk(0, word, (1,), (-1.0,), (word,), ((),), more=True)
            yield Chunk(1, word, (1,), (-1.0,), (word,), ((),))
        await asyncio.sleep(0)
        yield Chunk(1, "three", (1,), (-1.0,), ("three",), ((),), "length", more=True)
        yield Chunk(0, "", (2,), (-1.0,), ("",), ((),), "stop")


async def test_what_a_step_brings_to_both_sides_is_sent_in_one_piece(ledger: Ledger, paths: DataPaths) -> None:
    engine = Stepping()
    await engine.start()
    deps = ready_deps(engine, ledger, paths, ServeConfig())
    events = run_pair(deps, PairAsk((Message(role="user", content="Hello?"),)), "v_1")
    request = Request({"type": "http", "state": {"log": {}}})
    stream = EventStream(wire(events, request, event_bytes), patience=PATIENT)
    told = [piece.count(b"event: delta") for piece in await heard_of(stream)]
    assert told == [0, 2, 2, 1, 0, 0]  # pair, three steps, done, the end


def test_the_page_waits_for_several_keep_alives_before_it_gives_a_stream_up() -> None:
    page = (Path(__file__).resolve().parents[2] / "serve/web/js/sse.js").read_text()
    (quiet_ms,) = re.findall(r"const QUIET_MS = ([\d_]+);", page)
    assert int(quiet_ms) / 1000 >= 3 * inspect.signature(EventStream).parameters["keep_alive_s"].default
