"""Bodies of requests to a vLLM OpenAI server, and what its answers say. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from serve.engines.base import EngineError, GenerationRequest, Priority

ID_PREFIX = "token_id:"


def completion_body(request: GenerationRequest, base: str) -> dict[str, Any]:
    """The body of a streamed completion. All that a server's defaults could change is said."""
    sampling = request.sampling
    return {
        "model": request.adapter or base,
        "prompt": list(request.prompt_token_ids),
        "n": sampling.n,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "ignore_eos": sampling.ignore_eos,
        "logprobs": sampling.logprobs,
        "priority": int(request.priority),
        "request_id": request.request_id,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def scoring_body(token_ids: Sequence[int], model: str) -> dict[str, Any]:
    """The body of a completion that only scores its prompt."""
    return {
        "model": model,
        "prompt": list(token_ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "priority": int(Priority.PROBE),
    }


def prompt_logprobs(answer: dict[str, Any], token_ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities of a scored prompt's ids but the first.

    Raises:
        EngineError: the answer has none.
    """
    steps = answer["choices"][0].get("prompt_logprobs")
    if not steps or len(steps) != len(token_ids):
        raise EngineError("the vLLM server gave no log-probabilities for the prompt")
    return tuple(float(step[str(token)]["logprob"]) for step, token in zip(steps[1:], token_ids[1:], strict=True))


def likeliest(step: dict[str, float], count: int) -> Iterator[tuple[int, float]]:
    """The `count` likeliest of a step's "token_id:…" entries, best first."""
    ranked = sorted(step.items(), key=lambda item: item[1], reverse=True)
    for name, value in ranked[:count]:
        yield int(name.removeprefix(ID_PREFIX)), float(value)
