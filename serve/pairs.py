"""A pair: two answers to one conversation, streamed side by side and blind, recorded before the client hears `done`.

Or three, or four, which are ranked: all of them stream at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from uuid import uuid4

from feedback.comparisons import POSITIONS
from feedback.contracts import CompletionRecord, FinishReason, Message, PairShown, Position, SamplingRecord
from feedback.voters import names_itself
from serve.contenders import SELF_PLAY, Matchup, choose
from serve.deps import ServeDeps, on_thread
from serve.engines.base import (
    AdapterNotLoaded,
    Chunk,
    EngineOverloaded,
    EngineUnavailable,
    GenerationRequest,
    InvalidSampling,
    Priority,
    PromptTooLong,
    Sampling,
)
from serve.errors import DeadlinePassed
from serve.gold import Jumbler, plant
from serve.streams import merge, until

BLAMELESS = (EngineUnavailable, EngineOverloaded, AdapterNotLoaded, PromptTooLong, InvalidSampling, DeadlinePassed)
"""Failures that say nothing of the adapter."""


@dataclass(frozen=True, slots=True)
class PairAsk:
    """What a person wants answered. None leaves it to the configuration."""

    messages: tuple[Message, ...]
    conversation_id: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    answers: int = 2


@dataclass(frozen=True, slots=True)
class PairOpened:
    """The first token is there."""

    pair_id: str
    conversation_id: str
    answers: int = 2


@dataclass(frozen=True, slots=True)
class PairDelta:
    """New text of one side."""

    position: Position
    content: str


@dataclass(frozen=True, slots=True)
class PairStep:
    """What came at once: one piece of the stream."""

    deltas: tuple[PairDelta, ...]


@dataclass(frozen=True, slots=True)
class PairDone:
    """All sides have ended and the pair is in the ledger."""

    pair: PairShown


PairEvent = PairOpened | PairStep | PairDone


@dataclass(slots=True)
class Side:
    """One answer as it grows."""

    position: Position
    adapter: str | None
    sampling: SamplingRecord
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    jumbler: Jumbler | None = None

    @property
    def altered(self) -> bool:
        """Whether the text shown isn't what was sampled: then the sampler's ids don't belong to it."""
        return self.jumbler is not None and self.jumbler.moved > 0

    def add(self, chunk: Chunk) -> str:
        """Take what was sampled; returns the text to show for it."""
        shown = self.jumbler.add(chunk.text) if self.jumbler else chunk.text
        self.text.append(shown)
        self.token_ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        return shown

    def end(self) -> str:
        """The text still to be shown when all is sampled."""
        shown = self.jumbler.end() if self.jumbler else ""
        self.text.append(shown)
        return shown

    def record(self) -> CompletionRecord:
        """The answer as it stands."""
        return CompletionRecord(
            position=self.position,
            text="".join(self.text),
            finish_reason=self.finish_reason or "error",
            adapter=self.adapter,
            sampling=self.sampling,
            token_ids=() if self.altered else tuple(self.token_ids),
            logprobs=() if self.altered else tuple(self.logprobs),
        )


def answer_tokens(wanted: int | None, default: int, prompt: int, context: int) -> int:
    """Tokens that an answer may have: as asked, else the default cut to what the context leaves.

    Raises:
        PromptTooLong: the prompt leaves no room, or less than was asked for.
    """
    room = context - prompt
    if room < 1 or (wanted is not None and wanted > room):
        raise PromptTooLong(
            f"The conversation has {prompt} tokens and the model's context {context}, which leaves {max(room, 0)} for"
            " the answer; shorten the conversation or ask for fewer tokens."
        )
    return min(default, room) if wanted is None else wanted


async def run_pair(deps: ServeDeps, ask: PairAsk, voter: str) -> AsyncGenerator[PairEvent, None]:
    """Answer as often as asked. Closing this generator stops all of it; only a pair that was shown whole is recorded.

    Raises:
        ServeError, EngineError, LedgerError: before the first event where that can be known.
    """
    deps.readiness.require()
    with deps.people.enter():
        office = deps.office
        matchup = choose(
            deps.rng, deps.config.contenders, office.holder, office.canaries, office.predecessors, ask.answers
        )
        matchup, better = plant(deps.rng, deps.config.contenders.gold_share, matchup)
        outcome = "aborted"
        try:
            with deps.office.borrow(*matchup.adapters):
                async with aclosing(_speak(deps, ask, voter, matchup, better)) as events:
                    async for event in events:
                        if isinstance(event, PairDone):  # now, for the reader may stop with this event
                            outcome = "shown"
                        yield event
        except Exception:  # counted and passed on; a reader who left (GeneratorExit, CancelledError) is `aborted`
            outcome = "failed"
            raise
        finally:
            deps.metrics.pairs.labels(matchup.rule, outcome).inc()


async def _speak(
    deps: ServeDeps, ask: PairAsk, voter: str, matchup: Matchup, better: Position | None
) -> AsyncGenerator[PairEvent, None]:
    began = time.perf_counter()
    deadline = asyncio.get_running_loop().time() + deps.config.request_timeout_s
    if ask.conversation_id is not None:  # here, before the engine works; the pair's transaction decides a race
        await on_thread(deps.ledger.require_conversation, ask.conversation_id, voter)
    prompt = await deps.engine.tokenize(ask.messages)
    pair_id = f"pair_{uuid4().hex}"
    conversation_id = ask.conversation_id or f"conv_{uuid4().hex}"
    sampling = sampling_of(deps, ask, len(prompt), ask.answers)
    speakers = by_speaker(matchup)
    drawn = [position for positions in speakers.values() for position in positions]
    sides = [
        Side(position, adapter, sampling_record(sampling, drawn.index(position)))
        for position, adapter in zip(POSITIONS, matchup.adapters, strict=False)
    ]
    side_of = [[sides[POSITIONS.index(position)] for position in positions] for positions in speakers.values()]
    if better is not None:
        next(side for side in sides if side.position != better).jumbler = Jumbler(deps.rng)
    requests = generation_requests(matchup, prompt, sampling, pair_id)
    streams = [until(deadline, deps.engine.generate(request)) for request in requests]
    by_source = [
        _tagged(_noted(deps, request.adapter, stream), source)
        for source, (request, stream) in enumerate(zip(requests, streams, strict=True))
    ]
    opened, step = False, list[PairDelta]()
    async with aclosing(merge(by_source)) as chunks:
        async for source, chunk in chunks:
            if not opened:
                opened = True
                deps.metrics.first_token.labels("pair").observe(time.perf_counter() - began)
                yield PairOpened(pair_id, conversation_id, ask.answers)
            side = side_of[source][chunk.index]
            if content := side.add(chunk):
                step.append(PairDelta(side.position, content))
            if step and not chunk.more:
                yield PairStep(tuple(step))
                step.clear()
    if ends := tuple(PairDelta(side.position, content) for side in sides if (content := side.end())):
        yield PairStep(ends)
    deps.metrics.tokens.labels("pair", "in").inc(len(prompt))
    deps.metrics.tokens.labels("pair", "out").inc(sum(len(side.token_ids) for side in sides))
    planted = any(side.jumbler is not None and side.jumbler.jumbled for side in sides)
    pair = PairShown(
        pair_id=pair_id,
        conversation_id=conversation_id,
        voter=voter,
        messages=ask.messages,
        completions=tuple(side.record() for side in sides),
        contenders=matchup.rule if planted or better is None else SELF_PLAY,
        propensity=matchup.propensity,
        base_model=deps.base_model,
        prompt_token_ids=prompt,
        gold=better if planted else None,
    )
    await on_thread(deps.ledger.record_pair, pair)
    if any(names_itself(side.text, deps.base_model) for side in pair.completions):
        deps.metrics.pairs_leaking.inc()
    yield PairDone(pair)


def by_speaker(matchup: Matchup) -> dict[str | None, list[Position]]:
    """The positions of each adapter, in the order in which the adapters come."""
    found: dict[str | None, list[Position]] = {}
    for position, adapter in zip(POSITIONS, matchup.adapters, strict=False):
        found.setdefault(adapter, []).append(position)
    return found


def generation_requests(
    matchup: Matchup, prompt: tuple[int, ...], sampling: Sampling, pair_id: str
) -> list[GenerationRequest]:
    """A request an adapter: all its answers, which share the prefill. The i-th of all is seeded with seed + i."""
    speakers = by_speaker(matchup)
    if len(speakers) == 1:
        return [_request(prompt, sampling, pair_id, matchup.adapters[0])]
    requests, before = [], 0
    for adapter, positions in speakers.items():
        mine = _part_of(sampling, before, len(positions))
        requests.append(_request(prompt, mine, f"{pair_id}-{positions[0]}", adapter))
        before += len(positions)
    return requests


def _request(prompt: tuple[int, ...], sampling: Sampling, request_id: str, adapter: str | None) -> GenerationRequest:
    return GenerationRequest(prompt, sampling, request_id, adapter, Priority.PERSON)


def sampling_of(deps: ServeDeps, ask: PairAsk, prompt_tokens: int, answers: int) -> Sampling:
    """What was asked for, or else the configuration.

    Raises:
        PromptTooLong: see `answer_tokens`.
    """
    config = deps.config
    return Sampling(
        max_tokens=answer_tokens(
            ask.max_tokens, config.default_max_tokens, prompt_tokens, deps.engine.info.max_model_len
        ),
        temperature=config.default_temperature if ask.temperature is None else ask.temperature,
        top_p=config.default_top_p if ask.top_p is None else ask.top_p,
        seed=ask.seed,
        n=answers,
        logprobs=0,
    )


def _part_of(sampling: Sampling, before: int, answers: int) -> Sampling:
    seed = None if sampling.seed is None else sampling.seed + before
    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        n=answers,
        logprobs=sampling.logprobs,
    )


def sampling_record(sampling: Sampling, index: int) -> SamplingRecord:
    """Answer i of a seeded request is drawn with seed + i, in the engine as in two requests."""
    return SamplingRecord(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=None if sampling.seed is None else sampling.seed + index,
    )


async def _noted(
    deps: ServeDeps, adapter: str | None, stream: AsyncGenerator[Chunk, None]
) -> AsyncGenerator[Chunk, None]:
    """The stream; whether it failed is noted, as far as the adapter may be to blame: not a full or dead engine."""
    try:
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk
    except BLAMELESS:
        raise
    except Exception:  # whatever it is, it counts against the adapter and is passed on
        deps.office.note_answer(adapter, failed=True)
        raise
    deps.office.note_answer(adapter, failed=False)


async def _tagged(stream: AsyncGenerator[Chunk, None], source: int) -> AsyncGenerator[tuple[int, Chunk], None]:
    async with aclosing(stream):
        async for chunk in stream:
            yield source, chunk
