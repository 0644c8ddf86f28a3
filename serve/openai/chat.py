"""`POST /v1/chat/completions`: one adapter answers, streamed or whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from feedback.contracts import Message
from serve.deps import Deps, ServeDeps
from serve.engines.base import Chunk, GenerationRequest, Priority, Sampling
from serve.errors import BadRequest
from serve.faults import Fault, fault_of, unexpected_fault
from serve.http import FastJSON, sse
from serve.openai.models import resolve
from serve.openai.schema import ChatCompletionRequest
from serve.openai.wire import ChoiceBuffer, Head, delta_choice, first_choice, usage
from serve.pairs import answer_tokens
from serve.quick_route import QuickRoute
from serve.routes.problems import OPENAI_ERRORS
from serve.streams import EventStream, patience, primed, unless_gone, until

router = APIRouter(tags=["openai"], route_class=QuickRoute)
log = structlog.get_logger(__name__)
DONE = b"data: [DONE]\n\n"


class _Completion:
    """One request on its way through the engine."""

    def __init__(self, deps: ServeDeps, body: ChatCompletionRequest, messages: tuple[Message, ...]) -> None:
        self._deps = deps
        self._body = body
        self._messages = messages
        self.head = Head(f"chatcmpl-{uuid4().hex}", int(time.time()), body.model)
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The engine's chunks. Closing this stops the generation."""
        deps = self._deps
        deps.readiness.require()
        began = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + deps.config.request_timeout_s
        adapter = resolve(deps, self._body.model)
        with deps.people.enter(), deps.office.borrow(adapter):
            prompt = await deps.engine.tokenize(self._messages)
            self.prompt_tokens = len(prompt)
            request = GenerationRequest(prompt, self._sampling(), self.head.id, adapter, Priority.PERSON)
            async with aclosing(until(deadline, deps.engine.generate(request))) as stream:
                async for chunk in stream:
                    if self.completion_tokens == 0:
                        deps.metrics.first_token.labels("chat").observe(time.perf_counter() - began)
                    self.completion_tokens += len(chunk.token_ids)
                    yield chunk
        deps.metrics.tokens.labels("chat", "in").inc(self.prompt_tokens)
        deps.metrics.tokens.labels("chat", "out").inc(self.completion_tokens)

    def usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.completion_tokens)

    def _sampling(self) -> Sampling:
        body, config = self._body, self._deps.config
        context = self._deps.engine.info.max_model_len
        return Sampling(
            max_tokens=answer_tokens(body.wanted_tokens, config.default_max_tokens, self.prompt_tokens, context),
            temperature=config.default_temperature if body.temperature is None else body.temperature,
            top_p=config.default_top_p if body.top_p is None else body.top_p,
            seed=body.engine_seed,
            stop=body.stops,
            n=body.n or 1,
            logprobs=body.engine_logprobs,
            spelled=True,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            ignore_eos=body.ignore_eos,
        )


@router.post("/v1/chat/completions", response_model=None, responses=OPENAI_ERRORS)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, deps: Deps) -> Response:
    """OpenAI's chat completion. `model` is `hustings` (who is in office), `base`, or a loaded adapter."""
    completion = _Completion(deps, body, _messages(body, deps))
    if body.stream:
        chunks = await unless_gone(request, primed(completion.chunks()))
        return EventStream(_wire(completion, chunks, body), patience=patience(deps.config))
    return FastJSON(await unless_gone(request, _whole(completion, body)))


def _messages(body: ChatCompletionRequest, deps: ServeDeps) -> tuple[Message, ...]:
    config = deps.config
    if len(body.messages) > config.max_messages:
        raise BadRequest(f"messages may have {config.max_messages} turns at most.")
    if (body.n or 1) > config.max_n:
        raise BadRequest(f"n may be {config.max_n} at most.")
    if (body.wanted_tokens or 1) > config.max_max_tokens:
        raise BadRequest(f"max_tokens may be {config.max_max_tokens} at most.")
    return tuple(message.to_message() for message in body.messages)


async def _whole(completion: _Completion, body: ChatCompletionRequest) -> dict[str, Any]:
    choices = [ChoiceBuffer(index) for index in range(body.n or 1)]
    async with aclosing(completion.chunks()) as chunks:
        async for chunk in chunks:
            choices[chunk.index].add(chunk)
    return completion.head.completion([c.choice(bool(body.logprobs)) for c in choices], completion.usage())


async def _wire(
    completion: _Completion, chunks: AsyncGenerator[Chunk, None], body: ChatCompletionRequest
) -> AsyncGenerator[bytes, None]:
    """The chunks as server-sent events, ended by `[DONE]`; a failure becomes an error object in the stream."""
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    head, logprobs = completion.head, bool(body.logprobs)
    try:
        async with aclosing(chunks):
            for index in range(body.n or 1):
                yield sse(head.chunk([first_choice(index)], **more))
            async for chunk in chunks:
                if chunk.text or chunk.finish_reason or logprobs:
                    yield sse(head.chunk([delta_choice(chunk, logprobs)], **more))
        if with_usage:
            yield sse(head.chunk([], usage=completion.usage()))
    except Exception as error:  # noqa: BLE001 - told to the client, and logged unless it is a known fault
        yield sse(_stream_fault(error).openai())
    yield DONE


def _stream_fault(error: Exception) -> Fault:
    fault = fault_of(error)
    if fault is not None:
        return fault
    log.exception("a completion's stream failed", exc_info=error)
    return unexpected_fault()
