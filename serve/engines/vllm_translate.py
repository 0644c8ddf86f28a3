"""Between vLLM's types and ours. vLLM is imported inside the functions, so that importing this costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from serve.engines.base import (
    AnswerBroken,
    Chunk,
    Ending,
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidSampling,
    PromptTooLong,
    Sampling,
    TopLogprob,
)
from serve.engines.registry import HeldAdapter

_ENDINGS: dict[str, Ending] = {"stop": "stop", "length": "length", "repetition": "stop"}


def ending(told: str | None) -> Ending | None:
    """How an answer has ended, in our words; None while it goes on.

    Raises:
        AnswerBroken: vLLM has ended it before its time (`abort`, `error`): such a text is no answer of the model's.
    """
    if told is None:
        return None
    if told not in _ENDINGS:
        raise AnswerBroken(f"the engine broke the answer off ({told}); ask again")
    return _ENDINGS[told]


def first_line(error: BaseException) -> str:
    """An error's first line: vLLM's messages carry whole stack traces."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # pydantic's first line only counts the errors; the third says what is wrong.
    told = lines[2] if len(lines) > 2 and "validation error" in lines[0] else lines[0]
    return told.strip()[:400]


def template_refusal(error: Exception) -> InvalidSampling:
    """The model's chat template does not take this conversation."""
    return InvalidSampling(f"the model's chat template refuses these messages: {first_line(error)}")


@contextmanager
def engine_errors(is_dead: Callable[[], bool]) -> Iterator[None]:
    """Turn vLLM's exceptions into ours.

    Raises:
        EngineUnavailable: the core process is dead.
        EngineOverloaded: vLLM's own admission control refused.
        InvalidSampling, PromptTooLong: vLLM refused the request.
        EngineError: anything else that vLLM raised.
    """
    from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMError

    try:
        yield
    except GracefulHTTPError as error:
        raise EngineOverloaded(first_line(error)) from error
    except VLLMClientError as error:
        text = first_line(error)
        refused = PromptTooLong if "maximum model length" in text or "max_model_len" in text else InvalidSampling
        raise refused(text) from error
    except VLLMError as error:
        if is_dead():
            raise EngineUnavailable("the engine's core process has died; restart serving") from error
        raise EngineError(f"the engine failed: {first_line(error.__cause__ or error)}") from error


def sampling_parameters(sampling: Sampling) -> Any:
    """vLLM's sampling parameters of a streamed generation.

    Raises:
        InvalidSampling: vLLM refuses them.
    """
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    try:
        return SamplingParams(
            n=sampling.n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=list(sampling.stop),
            logprobs=sampling.logprobs,
            flat_logprobs=_bare(sampling),
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            ignore_eos=sampling.ignore_eos,
            output_kind=RequestOutputKind.DELTA,
        )
    except (VLLMClientError, ValueError, TypeError) as error:
        raise InvalidSampling(first_line(error)) from error


def scoring_parameters() -> Any:
    """Parameters of a request that only scores its prompt. vLLM skips the prefix cache for it by itself."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def lora_request(adapter: HeldAdapter | None) -> Any:
    """vLLM's handle of an adapter; None for the base."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.number, lora_path=str(adapter.path))


def chunks(output: Any, sampling: Sampling) -> Iterator[Chunk]:
    """Our chunks of one of vLLM's outputs: one for each answer that it tells something of."""
    telling = [part for part in output.outputs if part.token_ids or part.text or part.finish_reason is not None]
    for left, part in zip(reversed(range(len(telling))), telling, strict=True):
        ids = tuple(part.token_ids)
        finish = ending(part.finish_reason)
        if sampling.logprobs is None:
            yield Chunk(part.index, part.text, ids, finish_reason=finish, more=left > 0)
            continue
        if _bare(sampling):
            yield Chunk(part.index, part.text, ids, _numbers(part, ids), finish_reason=finish, more=left > 0)
            continue
        steps = list(part.logprobs or ())
        yield Chunk(
            index=part.index,
            text=part.text,
            token_ids=ids,
            logprobs=tuple(float(step[token].logprob) for step, token in zip(steps, ids, strict=True)),
            tokens=tuple(step[token].decoded_token or "" for step, token in zip(steps, ids, strict=True))
            if sampling.spelled
            else (),
            top_logprobs=tuple(_likeliest(step, sampling.logprobs) for step in steps),
            finish_reason=finish,
            more=left > 0,
        )


def prompt_logprobs(output: Any, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities of a scored prompt's ids but the first."""
    steps = output.prompt_logprobs
    if steps is None or len(steps) != len(token_ids):
        raise EngineError("the engine gave no log-probabilities for the prompt")
    return tuple(float(step[token].logprob) for step, token in zip(steps[1:], token_ids[1:], strict=True))


class LatestStats:
    """The scheduler's figures after its last step."""

    def __init__(self) -> None:
        self.running = 0
        self.kv_cache_usage = 0.0

    def logger(self) -> Any:
        """A factory of a vLLM stat logger that keeps this up to date."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        latest = self

        class Keep(cast("type[Any]", StatLoggerBase)):  # type: ignore[misc]  # vLLM is untyped here
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                del vllm_config, engine_index

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    latest.running = scheduler_stats.num_running_reqs
                    latest.kv_cache_usage = scheduler_stats.kv_cache_usage

            def log_engine_initialized(self) -> None: ...

        return Keep


def _bare(sampling: Sampling) -> bool:
    """Whether the log-probs' numbers are all that is wanted: then vLLM is asked for them alone (`vllm_logprobs`)."""
    return sampling.logprobs == 0 and not sampling.spelled


def _numbers(part: Any, ids: tuple[int, ...]) -> tuple[float, ...]:
    found = tuple(part.logprobs or ())
    if len(found) != len(ids):
        raise EngineError(f"the engine gave {len(found)} log-probabilities for {len(ids)} tokens")
    return found


def _likeliest(step: dict[int, Any], count: int) -> tuple[TopLogprob, ...]:
    ranked = sorted(step.items(), key=lambda item: item[1].logprob, reverse=True)[:count]
    return tuple(TopLogprob(token, each.decoded_token or "", float(each.logprob)) for token, each in ranked)
