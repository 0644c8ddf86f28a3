"""What every engine promises, asked of the fake and of the real vLLM on a tiny model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from feedback.contracts import Message
from serve.engines import vllm_server
from serve.engines.base import (
    AdapterLoadFailed,
    AdapterNotLoaded,
    AnswerBroken,
    Chunk,
    Engine,
    EngineError,
    GenerationRequest,
    InvalidSampling,
    NoRoomForAdapter,
    Priority,
    PromptTooLong,
    Sampling,
)
from serve.engines.vllm_http import VllmHttpEngine
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")

names = (f"policy-{number:06d}" for number in itertools.count(1))
request_ids = (f"request-{number}" for number in itertools.count(1))


def next_name() -> str:
    """An adapter name that no test has used."""
    return next(names)


@pytest_asyncio.fixture(loop_scope="session")
async def fake_engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(max_model_len=256, max_running=8, max_adapters=4)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(
    params=[
        "fake_engine",
        pytest.param("vllm_engine", marks=pytest.mark.slow),
        pytest.param("vllm_http_engine", marks=pytest.mark.slow),
    ]
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    found: Engine = request.getfixturevalue(request.param)
    yield found
    assert found.load().running + found.load().waiting == 0, "a test left a request behind"


@pytest.fixture
def folders(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> tuple[Path, ...]:
    """Three adapter folders with different weights."""
    if not isinstance(engine, FakeEngine):
        return tuple(request.getfixturevalue("tiny_adapters"))
    made = tuple(tmp_path / f"lora-{number}" for number in range(3))
    for number, folder in enumerate(made):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(bytes([number]))
    return made


@pytest_asyncio.fixture(loop_scope="session")
async def adapter(engine: Engine, folders: tuple[Path, ...]) -> AsyncIterator[str]:
    name = next(names)
    await engine.load_adapter(name, folders[0])
    yield name
    await engine.unload_adapter(name)


@dataclass
class Answer:
    """One answer, put together from its chunks."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def finish_reasons(self) -> list[str]:
        return [chunk.finish_reason for chunk in self.chunks if chunk.finish_reason]


async def prompt_of(engine: Engine, text: str = "what do you think of the river?") -> tuple[int, ...]:
    return await engine.tokenize([Message(role="user", content=text)])


async def ask(
    engine: Engine,
    sampling: Sampling,
    *,
    adapter: str | None = None,
    priority: Priority = Priority.PERSON,
    prompt: tuple[int, ...] | None = None,
    begun: asyncio.Event | None = None,
) -> dict[int, Answer]:
    """Run a request to its end; answers by index."""
    answers: dict[int, Answer] = {}
    wanted = GenerationRequest(prompt or await prompt_of(engine), sampling, next(request_ids), adapter, priority)
    async for chunk in engine.generate(wanted):
        if begun is not None:
            begun.set()
        answer = answers.setdefault(chunk.index, Answer())
        answer.text += chunk.text
        answer.ids += chunk.token_ids
        answer.logprobs += chunk.logprobs
        answer.chunks.append(chunk)
    return answers


def steady(tokens: int, **more: object) -> Sampling:
    """Exactly so many tokens."""
    return Sampling(max_tokens=tokens, ignore_eos=True, **more)  # type: ignore[arg-type]


async def test_info_tells_what_is_served(engine: Engine) -> None:
    await engine.check_health()
    assert engine.info.max_model_len == 256
    assert engine.info.max_lora_rank >= 8
    assert engine.info.version
    assert engine.info.dtype


async def test_a_stream_ends_once_with_its_reason(engine: Engine) -> None:
    [answer] = (await ask(engine, steady(20))).values()
    assert len(answer.ids) == 20
    assert answer.finish_reasons == ["length"]
    assert answer.chunks[-1].finish_reason == "length"
    assert len(answer.chunks) > 1


async def test_n_answers_come_with_their_indices(engine: Engine) -> None:
    answers = await ask(engine, steady(12, n=3, seed=5))
    assert set(answers) == {0, 1, 2}
    assert all(len(answer.ids) == 12 and answer.finish_reasons == ["length"] for answer in answers.values())
    assert len({tuple(answer.ids) for answer in answers.values()}) == 3


async def test_a_seed_makes_an_answer_repeat(engine: Engine) -> None:
    first, again, other = [(await ask(engine, steady(16, seed=seed)))[0].ids for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_several_answers_at_temperature_zero_are_one_and_the_same(engine: Engine) -> None:
    """vLLM refuses to write one answer twice; a pair at temperature 0 was refused with it."""
    alone = (await ask(engine, steady(16, temperature=0.0, logprobs=0)))[0]
    both = await ask(engine, steady(16, temperature=0.0, logprobs=0, n=2))
    assert set(both) == {0, 1}
    assert [answer.ids for answer in both.values()] == [alone.ids] * 2
    assert [answer.text for answer in both.values()] == [alone.text] * 2
    assert [answer.finish_reasons for answer in both.values()] == [["length"]] * 2


async def test_a_seed_says_the_same_when_prompts_do_not_fit_into_one_step(engine: Engine) -> None:
    """One seeded request whose prompt was cut ended vLLM's CPU engine, and serving with it, for everybody."""
    texts = [" ".join(f"{at} word {number}" for number in range(40))[:180] for at in range(8)]
    prompts = [await prompt_of(engine, text) for text in texts]
    assert sum(map(len, prompts)) > 512, "more than a CPU's engine computes in a step"
    sampling = [steady(12, seed=at) for at in range(8)]
    asked = (ask(engine, each, prompt=prompt) for each, prompt in zip(sampling, prompts, strict=True))
    together = [answers[0].ids for answers in await asyncio.gather(*asked)]
    await engine.check_health()
    # Afterwards, for what was asked before would be in the prefix cache, and no prompt would be cut.
    alone = [(await ask(engine, each, prompt=prompt))[0].ids for each, prompt in zip(sampling, prompts, strict=True)]
    assert together == alone


async def test_temperature_zero_always_gives_the_same(engine: Engine) -> None:
    first, again = [(await ask(engine, steady(16, temperature=0.0)))[0].ids for _ in range(2)]
    assert first == again


@pytest.mark.parametrize("with_adapter", [False, True])
async def test_logprobs_of_a_sample_at_temperature_one_are_its_score(
    engine: Engine, adapter: str, with_adapter: bool
) -> None:
    name = adapter if with_adapter else None
    prompt = await prompt_of(engine)
    answer = (await ask(engine, steady(20, logprobs=0, seed=3), adapter=name, prompt=prompt))[0]
    score = await engine.score((*prompt, *answer.ids), name)
    assert len(score) == len(prompt) + len(answer.ids) - 1
    assert answer.logprobs == pytest.approx(score[len(prompt) - 1 :], abs=1e-3)


async def test_top_logprobs_are_as_many_as_asked_and_sorted(engine: Engine) -> None:
    answer = (await ask(engine, steady(8, logprobs=3, spelled=True, temperature=0.0)))[0]
    for chunk in answer.chunks:
        assert len(chunk.logprobs) == len(chunk.tokens) == len(chunk.top_logprobs) == len(chunk.token_ids)
        for top in chunk.top_logprobs:
            values = [each.logprob for each in top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("logprobs", [0, 2])
async def test_tokens_are_spelled_only_where_that_is_wanted_and_it_changes_nothing_else(
    engine: Engine, logprobs: int
) -> None:
    plain, spelled = [
        (await ask(engine, steady(12, logprobs=logprobs, spelled=spelled, seed=5)))[0] for spelled in (False, True)
    ]
    assert all(not chunk.tokens for chunk in plain.chunks)
    assert all(len(chunk.tokens) == len(chunk.token_ids) for chunk in spelled.chunks)
    assert (plain.text, plain.ids) == (spelled.text, spelled.ids)
    assert plain.logprobs == pytest.approx(spelled.logprobs, abs=1e-3)
    assert {len(top) for chunk in plain.chunks for top in chunk.top_logprobs} <= {logprobs}


async def test_requests_that_want_different_logprobs_share_a_batch(engine: Engine) -> None:
    wanted = (None, 0, 3, 0)
    prompt = await prompt_of(engine)
    answers = await asyncio.gather(
        *(ask(engine, steady(24, logprobs=each, seed=7 + at), prompt=prompt) for at, each in enumerate(wanted))
    )
    for each, [answer] in zip(wanted, (found.values() for found in answers), strict=True):
        if each is None:
            assert answer.logprobs == []
            continue
        score = await engine.score((*prompt, *answer.ids), None)
        assert answer.logprobs == pytest.approx(score[len(prompt) - 1 :], abs=2e-3)


async def test_bare_logprobs_stop_with_the_text_at_a_stop_string(engine: Engine) -> None:
    whole = (await ask(engine, steady(24, logprobs=0, temperature=0.0)))[0]
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = (await ask(engine, steady(24, logprobs=0, temperature=0.0, stop=(stop,))))[0]
    assert stop not in cut.text
    assert len(cut.logprobs) == len(cut.ids)
    assert cut.logprobs == pytest.approx(whole.logprobs[: len(cut.ids)], abs=1e-3)


async def test_no_logprobs_unless_asked(engine: Engine) -> None:
    answer = (await ask(engine, steady(4)))[0]
    assert all(not chunk.logprobs and not chunk.tokens and not chunk.top_logprobs for chunk in answer.chunks)


async def test_a_stop_string_ends_the_answer_before_itself(engine: Engine) -> None:
    whole = (await ask(engine, steady(40, seed=11)))[0].text
    stop = next(whole[at : at + 2] for at in range(len(whole) // 2, len(whole)) if whole[at : at + 2].isascii())
    answer = (await ask(engine, steady(40, seed=11, stop=(stop,))))[0]
    assert answer.text == whole[: whole.find(stop)]
    assert answer.finish_reasons == ["stop"]


async def test_an_adapter_speaks_differently_from_the_base(engine: Engine, adapter: str) -> None:
    prompt = await prompt_of(engine)
    base, adapted = await engine.score(prompt, None), await engine.score(prompt, adapter)
    assert max(abs(a - b) for a, b in zip(base, adapted, strict=True)) > 0.05


async def test_an_unknown_adapter_is_refused(engine: Engine) -> None:
    with pytest.raises(AdapterNotLoaded):
        await ask(engine, steady(4), adapter="policy-999999")
    with pytest.raises(AdapterNotLoaded):
        await engine.score(await prompt_of(engine), "policy-999999")


async def test_adapters_come_and_go(engine: Engine, folders: tuple[Path, ...]) -> None:
    name = next(names)
    assert name not in engine.adapters()
    await engine.load_adapter(name, folders[1])
    assert name in engine.adapters()
    await engine.load_adapter(name, folders[1])
    await engine.unload_adapter(name)
    assert name not in engine.adapters()
    await engine.unload_adapter(name)
    with pytest.raises(AdapterNotLoaded):
        await ask(engine, steady(4), adapter=name)


async def test_a_name_never_gets_other_weights(engine: Engine, folders: tuple[Path, ...]) -> None:
    name = next(names)
    await engine.load_adapter(name, folders[0])
    with pytest.raises(AdapterLoadFailed, match="other weights"):
        await engine.load_adapter(name, folders[1])
    await engine.unload_adapter(name)
    with pytest.raises(AdapterLoadFailed, match="other weights"):
        await engine.load_adapter(name, folders[1])
    assert name not in engine.adapters()


async def test_a_folder_without_weights_is_refused_and_nothing_changes(engine: Engine, tmp_path: Path) -> None:
    before = engine.adapters()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterLoadFailed):
        await engine.load_adapter(next(names), tmp_path)
    assert engine.adapters() == before
    assert len((await ask(engine, steady(3)))[0].ids) == 3


async def test_more_adapters_than_fit_are_refused(engine: Engine, folders: tuple[Path, ...]) -> None:
    loaded = [next(names) for _ in range(4 - len(engine.adapters()))]
    for name in loaded:
        await engine.load_adapter(name, folders[0])
    with pytest.raises(NoRoomForAdapter, match="no room"):
        await engine.load_adapter(next(names), folders[0])
    for name in loaded:
        await engine.unload_adapter(name)


async def test_an_adapter_loads_while_streams_run_and_none_fails_or_mixes(
    engine: Engine, adapter: str, folders: tuple[Path, ...]
) -> None:
    other, begun = next(names), [asyncio.Event() for _ in range(8)]
    speakers = [adapter if at % 2 else None for at in range(8)]
    prompts = [await prompt_of(engine, f"question {at}") for at in range(8)]
    streams = [
        asyncio.create_task(
            ask(engine, steady(120, logprobs=0, seed=at), adapter=speakers[at], prompt=prompts[at], begun=begun[at])
        )
        for at in range(8)
    ]
    await asyncio.gather(*(each.wait() for each in begun))
    await engine.load_adapter(other, folders[2])
    late = await ask(engine, steady(20, logprobs=0, seed=1), adapter=other, prompt=prompts[0])
    answers = [answers[0] for answers in await asyncio.gather(*streams)]
    for speaker, prompt, answer in zip([*speakers, other], [*prompts, prompts[0]], [*answers, late[0]], strict=True):
        score = await engine.score((*prompt, *answer.ids), speaker)
        assert answer.logprobs == pytest.approx(score[len(prompt) - 1 :], abs=2e-3)
    await engine.unload_adapter(other)


async def test_scoring_goes_on_beside_running_streams(engine: Engine, adapter: str) -> None:
    prompt = await prompt_of(engine)
    alone = {who: await engine.score(prompt, who) for who in (None, adapter)}
    begun = [asyncio.Event() for _ in range(4)]
    streams = [
        asyncio.create_task(ask(engine, steady(60), adapter=adapter if at % 2 else None, begun=begun[at]))
        for at in range(4)
    ]
    await asyncio.gather(*(each.wait() for each in begun))
    for who in (None, adapter):
        assert await engine.score(prompt, who) == pytest.approx(alone[who], abs=2e-3)
    assert all(len(answers[0].ids) == 60 for answers in await asyncio.gather(*streams))


async def test_the_base_stays_the_base_when_every_adapter_slot_is_taken(
    engine: Engine, folders: tuple[Path, ...]
) -> None:
    loaded = [next(names) for _ in range(4)]
    for at, name in enumerate(loaded):
        await engine.load_adapter(name, folders[at % 3])
    speakers = [None, *loaded]
    prompts = [await prompt_of(engine, f"question {at}") for at in range(5)]
    asked = [
        ask(engine, steady(40, logprobs=0, seed=at), adapter=speaker, prompt=prompts[at])
        for at, speaker in enumerate(speakers)
    ]
    answers = [answers[0] for answers in await asyncio.gather(*asked)]
    for speaker, prompt, answer in zip(speakers, prompts, answers, strict=True):
        score = await engine.score((*prompt, *answer.ids), speaker)
        assert answer.logprobs == pytest.approx(score[len(prompt) - 1 :], abs=2e-3)
    for name in loaded:
        await engine.unload_adapter(name)


async def test_closing_the_iterator_frees_the_request_at_once(engine: Engine) -> None:
    wanted = GenerationRequest(await prompt_of(engine), steady(180), next(request_ids))
    async with aclosing(engine.generate(wanted)) as stream:  # type: ignore[type-var]
        async for _ in stream:
            break
    assert engine.load().running + engine.load().waiting == 0
    second = GenerationRequest(await prompt_of(engine), steady(30), next(request_ids))
    seen = [engine.load().running async for _ in engine.generate(second)]
    assert max(seen) == 1


async def test_cancelling_the_reader_frees_the_request(engine: Engine) -> None:
    begun = asyncio.Event()
    reader = asyncio.create_task(ask(engine, steady(180), begun=begun))
    await begun.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert engine.load().running + engine.load().waiting == 0


@pytest.fixture
def break_off(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Awaitable[None]]:
    """Make the engine end a request before its time: call it with the request's id after its first chunk."""

    async def by_fake(request_id: str) -> None:
        monkeypatch.setattr(engine, "failure", AnswerBroken("broken off"))
        monkeypatch.setattr(engine, "fail_after", 3)

    async def by_vllm(request_id: str) -> None:
        await engine._llm.abort(request_id)  # type: ignore[attr-defined]

    async def by_server(request_id: str) -> None:
        """Its HTTP has no such call; what it would say then is put into its mouth."""

        def told(data: bytes) -> bytes:
            return data.replace(b'"finish_reason":"length"', b'"finish_reason":"abort"')

        async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for data in plain(pieces):
                yield told(data)

        plain = vllm_server.events
        monkeypatch.setattr(vllm_server, "events", events)

    if isinstance(engine, FakeEngine):
        return by_fake
    return by_server if isinstance(engine, VllmHttpEngine) else by_vllm


async def test_an_answer_that_the_engine_breaks_off_is_an_error_and_no_shorter_answer(
    engine: Engine, break_off: Callable[[str], Awaitable[None]]
) -> None:
    """vLLM says `abort` or `error` then; clients were told that the model had stopped."""
    if isinstance(engine, VllmHttpEngine):
        await break_off("")
    wanted = GenerationRequest(await prompt_of(engine), steady(120), next(request_ids))
    endings = []
    with pytest.raises(AnswerBroken, match="broke"):
        async for chunk in engine.generate(wanted):
            endings.append(chunk.finish_reason)
            if len(endings) == 1:
                await break_off(wanted.request_id)
    assert endings
    assert set(endings) == {None}
    await engine.check_health()


async def test_unloading_waits_for_the_adapters_streams_and_takes_no_new_ones(
    engine: Engine, folders: tuple[Path, ...]
) -> None:
    name, begun = next(names), asyncio.Event()
    await engine.load_adapter(name, folders[0])
    stream = asyncio.create_task(ask(engine, steady(150), adapter=name, begun=begun))
    await begun.wait()
    unload = asyncio.create_task(engine.unload_adapter(name))
    while name in engine.adapters():
        await asyncio.sleep(0)
    assert engine.load().by_adapter.get(name) == 1
    with pytest.raises(AdapterNotLoaded):
        await ask(engine, steady(4), adapter=name)
    assert not unload.done()
    assert len((await stream)[0].ids) == 150
    await unload


async def test_people_go_before_rollouts_when_the_engine_is_full(engine: Engine) -> None:
    begun = [asyncio.Event() for _ in range(8)]
    fillers = [asyncio.create_task(ask(engine, steady(30 + 20 * at), begun=begun[at])) for at in range(8)]
    await asyncio.gather(*(each.wait() for each in begun))
    order: list[str] = []

    async def queued(who: str, priority: Priority) -> None:
        event = asyncio.Event()
        running = asyncio.create_task(ask(engine, steady(4), priority=priority, begun=event))
        await event.wait()
        order.append(who)
        await running

    rollouts = [asyncio.create_task(queued(f"rollout {at}", Priority.ROLLOUT)) for at in range(3)]
    while engine.load().running + engine.load().waiting < 11:
        await asyncio.sleep(0)
    person = asyncio.create_task(queued("person", Priority.PERSON))
    await asyncio.gather(person, *rollouts, *fillers)
    assert order[0] == "person"


async def test_what_does_not_fit_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(PromptTooLong):
        await ask(engine, steady(200), prompt=tuple(range(97, 107)) * 10)
    with pytest.raises(PromptTooLong):
        await engine.score(tuple(range(97, 107)) * 26, None)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=0), Sampling(max_tokens=4, temperature=-1.0), Sampling(max_tokens=4, top_p=0.0)],
)
async def test_impossible_sampling_is_refused(engine: Engine, sampling: Sampling) -> None:
    with pytest.raises(InvalidSampling):
        await ask(engine, sampling)
    assert issubclass(InvalidSampling, EngineError)
