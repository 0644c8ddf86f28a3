"""Rollouts for the trainer: samples at low priority, from adapters that only the trainer uses. Operator's token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Depends, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from serve.deps import Deps, ServeDeps
from serve.engines.base import GenerationRequest, Priority, PromptTooLong, Sampling
from serve.http import FastJSON
from serve.openai.models import ModelNotFound
from serve.rollout_adapters import ROLLOUT_NAME, ROLLOUT_PREFIX, RolloutAdapters
from serve.routes.problems import PROBLEMS
from serve.routes.releases import Operator
from serve.streams import unless_gone, until

router = APIRouter(tags=["rollouts"])
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=200_000)]


Digest = Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")]


class RolloutRequest(BaseModel):
    """Prompts to be continued `n` times each. The i-th prompt is drawn with seed + i * n.

    A rollout adapter that this serving hasn't loaded is loaded from the data folder; with `digest` (sha256 over its
    configuration and weights, `feedback.fingerprint.adapter_digest`) only that one.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    adapter: str | None = Field(max_length=64)
    digest: Digest = None
    prompts: list[TokenIds] = Field(min_length=1, max_length=4096)
    n: int = Field(default=1, ge=1, le=64)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=2**53)


class Rollout(BaseModel):
    """One answer: the sampler's own ids, and the log-prob of each under the distribution that it was drawn from."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class RolloutResponse(BaseModel):
    """`n` answers for each prompt, in the prompts' order."""

    completions: list[list[Rollout]]


class Meant(BaseModel):
    """Which adapter is meant, where the name alone doesn't say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    digest: Digest = None


async def _adapters_of(request: Request) -> RolloutAdapters:
    """The app's rollout adapters."""
    adapters: RolloutAdapters = request.app.state.rollout_adapters
    return adapters


Adapters = Annotated[RolloutAdapters, Depends(_adapters_of)]


@router.post("/v1/rollouts", response_model=RolloutResponse, responses=PROBLEMS, dependencies=Operator)
async def roll_out(body: RolloutRequest, request: Request, deps: Deps, adapters: Adapters) -> Response:
    """Sample at low priority: people go first."""
    deps.readiness.require()
    context = deps.engine.info.max_model_len
    if max(map(len, body.prompts)) + body.max_tokens > context:
        raise PromptTooLong(f"A prompt and max_tokens exceed the context of {context} tokens; drop it or cut it.")
    with deps.rollouts.enter():
        async with _borrowed(deps, adapters, body):
            return FastJSON({"completions": await unless_gone(request, _all(deps, body))})


@asynccontextmanager
async def _borrowed(deps: ServeDeps, adapters: RolloutAdapters, body: RolloutRequest) -> AsyncIterator[None]:
    """Keep the adapter loaded until the block ends. A published one is here already, proved, or isn't to be had."""
    if body.adapter is not None and body.adapter.startswith(ROLLOUT_PREFIX):
        async with adapters.borrow(body.adapter, body.digest):
            yield
        return
    if body.adapter is not None and body.adapter not in deps.engine.adapters():
        raise ModelNotFound(f"No adapter {body.adapter} is loaded here; GET /v1/models lists those that are.")
    with deps.office.borrow(body.adapter):
        yield


async def _all(deps: ServeDeps, body: RolloutRequest) -> list[list[dict[str, Any]]]:
    deadline = asyncio.get_running_loop().time() + deps.config.rollout_timeout_s
    batch = uuid4().hex
    tasks: list[asyncio.Task[list[dict[str, Any]]]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for index, prompt in enumerate(body.prompts):
                request = _request(body, index, prompt, f"rollout-{batch}-{index}")
                tasks.append(group.create_task(_one(deps, request, deadline)))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _request(body: RolloutRequest, index: int, prompt: Sequence[int], request_id: str) -> GenerationRequest:
    seed = None if body.seed is None else body.seed + index * body.n
    sampling = Sampling(body.max_tokens, temperature=body.temperature, seed=seed, n=body.n, logprobs=0)
    return GenerationRequest(tuple(prompt), sampling, request_id, body.adapter, Priority.ROLLOUT)


async def _one(deps: ServeDeps, request: GenerationRequest, deadline: float) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = [
        {"token_ids": [], "logprobs": [], "finish_reason": "error"} for _ in range(request.sampling.n)
    ]
    async with aclosing(until(deadline, deps.engine.generate(request))) as chunks:
        async for chunk in chunks:
            answer = answers[chunk.index]
            answer["token_ids"].extend(chunk.token_ids)
            answer["logprobs"].extend(chunk.logprobs)
            answer["finish_reason"] = chunk.finish_reason or answer["finish_reason"]
    deps.metrics.tokens.labels("rollout", "in").inc(len(request.prompt_token_ids))
    deps.metrics.tokens.labels("rollout", "out").inc(sum(len(answer["token_ids"]) for answer in answers))
    return answers


RolloutName = Annotated[str, Path(pattern=ROLLOUT_NAME)]


@router.put("/v1/rollout-adapters/{name}", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def load_rollout_adapter(
    name: RolloutName, deps: Deps, adapters: Adapters, meant: Annotated[Meant | None, Body()] = None
) -> Response:
    """Load a passing adapter of the trainer's from the data folder, by name."""
    deps.readiness.require()
    fresh = await adapters.load(name, None if meant is None else meant.digest)
    return FastJSON({"name": name}, 201 if fresh else 200)


@router.delete(
    "/v1/rollout-adapters/{name}", status_code=204, response_model=None, responses=PROBLEMS, dependencies=Operator
)
async def unload_rollout_adapter(name: RolloutName, deps: Deps, adapters: Adapters) -> Response:
    """Unload it; unknown names pass, so that a trainer may always clean up."""
    deps.readiness.require()
    await adapters.unload(name)
    return Response(status_code=204)
