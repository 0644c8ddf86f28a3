"""What the fake can do beyond the contract: it can be watched and broken."""

from __future__ import annotations

import asyncio

import pytest

from feedback.contracts import Message
from serve.engines.base import EngineUnavailable, GenerationRequest, Priority, Sampling
from tests.fakes.engine import FakeEngine


async def started(**options: object) -> FakeEngine:
    engine = FakeEngine(**options)  # type: ignore[arg-type]
    await engine.start()
    return engine


async def request(engine: FakeEngine, name: str, priority: Priority = Priority.PERSON) -> GenerationRequest:
    prompt = await engine.tokenize([Message(role="user", content="hi")])
    return GenerationRequest(prompt, Sampling(max_tokens=64, seed=1), name, priority=priority)


async def text_of(engine: FakeEngine, wanted: GenerationRequest) -> str:
    return "".join([chunk.text async for chunk in engine.generate(wanted)])


async def test_a_given_answer_is_streamed_byte_by_byte_and_characters_stay_whole() -> None:
    engine = await started(answer=lambda request, index: "grün €")
    chunks = [chunk async for chunk in engine.generate(await request(engine, "r"))]
    assert [chunk.text for chunk in chunks] == ["g", "r", "", "ü", "n", " ", "", "", "€", ""]
    assert chunks[-1].finish_reason == "stop"


async def test_the_gate_holds_every_token_until_it_is_set() -> None:
    engine = await started()
    engine.gate.clear()
    running = asyncio.create_task(text_of(engine, await request(engine, "r")))
    while engine.load().running == 0:
        await asyncio.sleep(0)
    assert not running.done()
    engine.gate.set()
    assert await running


async def test_a_full_engine_serves_people_before_rollouts() -> None:
    engine = await started(max_running=1)
    engine.gate.clear()
    first = asyncio.create_task(text_of(engine, await request(engine, "first")))
    while engine.load().running == 0:
        await asyncio.sleep(0)
    late = [await request(engine, "rollout", Priority.ROLLOUT), await request(engine, "person")]
    tasks = [asyncio.create_task(text_of(engine, each)) for each in late]
    while engine.load().waiting < 2:
        await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(first, *tasks)
    assert engine.started == ["first", "person", "rollout"]
    assert engine.load().running == 0


async def test_a_waiting_request_that_is_cancelled_leaves_the_queue() -> None:
    engine = await started(max_running=1)
    engine.gate.clear()
    first = asyncio.create_task(text_of(engine, await request(engine, "first")))
    while engine.load().running == 0:
        await asyncio.sleep(0)
    second = asyncio.create_task(text_of(engine, await request(engine, "second")))
    while engine.load().waiting == 0:
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert engine.load().waiting == 0
    assert engine.aborted == ["second"]
    engine.gate.set()
    await first


async def test_an_injected_failure_ends_the_stream_after_so_many_tokens() -> None:
    engine = await started()
    engine.fail_after = 3
    got = []
    with pytest.raises(EngineUnavailable):
        async for chunk in engine.generate(await request(engine, "r")):
            got.append(chunk)
    assert len(got) == 3


async def test_a_dead_engine_fails_its_streams_and_its_health_check() -> None:
    engine = await started()
    engine.gate.clear()
    running = asyncio.create_task(text_of(engine, await request(engine, "r")))
    while engine.load().running == 0:
        await asyncio.sleep(0)
    engine.die()
    with pytest.raises(EngineUnavailable):
        await running
    with pytest.raises(EngineUnavailable):
        await engine.check_health()
