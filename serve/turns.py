"""A turn of chat mode: most are answered once, with thumbs; a configured share are answered twice, as pairs.

In arena mode every turn is a pair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

from feedback.contracts import AnswerShown
from serve.deps import ServeDeps, on_thread
from serve.engines.base import GenerationRequest, Priority
from serve.pairs import PairAsk, PairDelta, PairEvent, PairStep, Side, run_pair, sampling_of, sampling_record
from serve.streams import until


@dataclass(frozen=True, slots=True)
class AnswerOpened:
    """The first token of a single answer is there."""

    answer_id: str
    conversation_id: str


@dataclass(frozen=True, slots=True)
class AnswerDone:
    """A single answer has ended and is in the ledger."""

    answer: AnswerShown


TurnEvent = PairEvent | AnswerOpened | AnswerDone


def run_turn(deps: ServeDeps, ask: PairAsk, voter: str) -> AsyncGenerator[TurnEvent, None]:
    """Answer a turn: as a pair with the configured probability, else once.

    Raises:
        ServeError, EngineError, LedgerError: before the first event where that can be known.
    """
    share = deps.config.chat.share
    if share >= 1.0 or deps.rng.random() < share:
        return run_pair(deps, ask, voter)
    return run_answer(deps, ask, voter, propensity=1.0 - share)


async def run_answer(
    deps: ServeDeps, ask: PairAsk, voter: str, *, propensity: float
) -> AsyncGenerator[TurnEvent, None]:
    """Who is in office answers alone. Closing this generator stops the generation, and nothing is recorded.

    Args:
        propensity: probability that this turn was to be answered once.
    """
    deps.readiness.require()
    with deps.people.enter():
        outcome, adapter = "aborted", deps.office.holder
        try:
            with deps.office.borrow(adapter):
                async with aclosing(_speak(deps, ask, voter, adapter, propensity)) as events:
                    async for event in events:
                        if isinstance(event, AnswerDone):
                            outcome = "shown"
                        yield event
        except Exception:  # counted and passed on; a reader who left (GeneratorExit, CancelledError) is `aborted`
            outcome = "failed"
            raise
        finally:
            deps.metrics.answers.labels(outcome).inc()


async def _speak(
    deps: ServeDeps, ask: PairAsk, voter: str, adapter: str | None, propensity: float
) -> AsyncGenerator[TurnEvent, None]:
    began = time.perf_counter()
    deadline = asyncio.get_running_loop().time() + deps.config.request_timeout_s
    if ask.conversation_id is not None:
        await on_thread(deps.ledger.require_conversation, ask.conversation_id, voter)
    prompt = await deps.engine.tokenize(ask.messages)
    opened = AnswerOpened(f"answer_{uuid4().hex}", ask.conversation_id or f"conv_{uuid4().hex}")
    sampling = sampling_of(deps, ask, len(prompt), answers=1)
    side = Side("a", adapter, sampling_record(sampling, 0))
    request = GenerationRequest(prompt, sampling, opened.answer_id, adapter, Priority.PERSON)
    first = True
    async with aclosing(until(deadline, deps.engine.generate(request))) as chunks:
        async for chunk in chunks:
            if first:
                first = False
                deps.metrics.first_token.labels("answer").observe(time.perf_counter() - began)
                yield opened
            side.add(chunk)
            if chunk.text:
                yield PairStep((PairDelta("a", chunk.text),))
    deps.metrics.tokens.labels("answer", "in").inc(len(prompt))
    deps.metrics.tokens.labels("answer", "out").inc(len(side.token_ids))
    answer = AnswerShown(
        answer_id=opened.answer_id,
        conversation_id=opened.conversation_id,
        voter=voter,
        messages=ask.messages,
        completion=side.record(),
        propensity=propensity,
        base_model=deps.base_model,
        prompt_token_ids=prompt,
    )
    await on_thread(deps.ledger.record_answer, answer)
    yield AnswerDone(answer)
