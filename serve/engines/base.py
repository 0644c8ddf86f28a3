"""What serving asks of an engine. The in-process vLLM, a remote vLLM and the tests' fake all keep this contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal, Protocol

from feedback.contracts import Message

# EngineError
# ├── EngineUnavailable     the engine is starting, stopped or away            -> 503
# │   ├── EngineLost        and won't come back in this process              (serving ends, to be started again)
# │   └── AnswerBroken      it has ended an answer before its time
# ├── EngineOverloaded      its queue is full                                  -> 429
# ├── PromptTooLong         prompt and max_tokens exceed the model's context   -> 400
# ├── InvalidSampling       a parameter that the engine refuses                -> 400
# ├── AdapterNotLoaded      a request named an adapter that is not there       -> 404
# ├── AdapterLoadFailed     the engine refused the adapter's weights           (the release is rejected)
# └── NoRoomForAdapter      all places are taken just now                      (the release is put off)


class EngineError(Exception):
    """Base of all engine failures; the message is fit for a user."""


class EngineUnavailable(EngineError):
    """The engine is starting, stopped or away; it may come back."""


class EngineLost(EngineUnavailable):
    """The engine won't come back in this process: serving has to be started again."""


class AnswerBroken(EngineUnavailable):
    """The engine has ended an answer before its time, by no fault of request or adapter; asking again may do."""


class EngineOverloaded(EngineError):
    """The engine's queue is full."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PromptTooLong(EngineError):
    """Prompt and requested tokens do not fit the model's context."""


class InvalidSampling(EngineError):
    """The engine refuses a sampling parameter."""


class AdapterNotLoaded(EngineError):
    """The named adapter is not loaded here."""


class AdapterLoadFailed(EngineError):
    """The engine refused the adapter's weights."""


class NoRoomForAdapter(EngineError):
    """All places are taken, or the name is being unloaded: the same load may succeed later."""


Ending = Literal["stop", "length"]
"""How an answer ends: by the model's own end or a stop string, or at the limit of its tokens."""


class Priority(IntEnum):
    """Who goes first when the engine is full; lower is sooner (vLLM's convention)."""

    PERSON = 0
    PROBE = 1
    ROLLOUT = 10


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one request.

    Attributes:
        n: how many answers to the same prompt; they share its prefill.
        logprobs: None for none, 0 for the sampled token's alone, k for it and the k likeliest.
        spelled: whether log-probs come with the sampled tokens' texts (`Chunk.tokens`), which cost more than they do.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    spelled: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of the engine. Give the prompt's token ids: `Engine.tokenize` makes them from messages.

    Attributes:
        adapter: name of a loaded adapter, or None for the base.
        request_id: unique; appears in the engine's own logs.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    request_id: str
    adapter: str | None = None
    priority: Priority = Priority.PERSON


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a step."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was new in a step: text may lag behind ids while a character is incomplete.

    Attributes:
        index: which of the `n` answers.
        text: new text.
        token_ids: new ids, the end-of-turn token included.
        logprobs: of each new id under the processed distribution; empty unless asked for.
        tokens: text of each new id; empty unless log-probs were asked for, and spelled.
        top_logprobs: per new id the likeliest tokens; empty unless asked for.
        finish_reason: set on the answer's last chunk. An answer that ends otherwise is none: `AnswerBroken`.
        more: another chunk follows at once, of the same step; whoever writes to a network may wait for it.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    finish_reason: Ending | None = None
    more: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is being served.

    Attributes:
        model: the path or hub id it was started with.
        max_model_len: context length in tokens.
        max_lora_rank: highest adapter rank that it takes.
    """

    model: str
    version: str
    dtype: str
    max_model_len: int
    max_lora_rank: int


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A moment's load: running and waiting requests, share of the KV cache in use (0 to 1)."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    by_adapter: dict[str, int] = field(default_factory=dict)


CHARACTERS_A_TOKEN = 32
"""More of them than this no conversation has on the average; prose has four to five."""


def check_text(messages: Sequence[Message], limit: int) -> None:
    """Whether a conversation may fit, asked before it is tokenized: a megabyte takes half a second of everybody's time.

    Raises:
        PromptTooLong: it has more characters than `limit` tokens ever stand for.
    """
    size = sum(len(message.content) for message in messages)
    if size > limit * CHARACTERS_A_TOKEN:
        raise PromptTooLong(
            f"The conversation has {size} characters, far more than the model's context of {limit} tokens; shorten it."
        )


def check_length(prompt: int, wanted: int, limit: int) -> None:
    """Whether a prompt and its answer can fit, all in tokens.

    Raises:
        InvalidSampling: no token is wanted.
        PromptTooLong: they are more than `limit`.
    """
    if wanted < 1:
        raise InvalidSampling(f"max_tokens is {wanted}; it must be at least 1")
    if prompt + wanted > limit:
        raise PromptTooLong(f"{prompt} prompt tokens and {wanted} to come are more than the {limit} that fit")


class Engine(Protocol):
    """A language model with adapters that come and go while it answers."""

    @property
    def info(self) -> EngineInfo:
        """What is served. Valid after `start`."""

    async def start(self) -> None:
        """Load the model; returns when it can answer."""

    async def close(self) -> None:
        """Stop everything; safe to call twice."""

    async def check_health(self) -> None:
        """Return if the engine can answer.

        Raises:
            EngineUnavailable: it cannot; the message says why.
            EngineLost: and never will again in this process.
        """

    async def tokenize(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's ids: chat template applied, generation prompt added."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Stream the answers. Closing the iterator aborts the generation in the engine at once.

        Raises:
            EngineError: one of the tree above, before the first chunk where that can be known; where it returns, each
                answer has had its last chunk.
        """

    async def score(self, token_ids: Sequence[int], adapter: str | None) -> tuple[float, ...]:
        """Natural-log probability of each id but the first, given those before it. Length `len(token_ids) - 1`."""

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter while streams run; none of them fails. A name is for one set of weights, for ever.

        Raises:
            AdapterLoadFailed: the engine refused it; nothing changed.
            NoRoomForAdapter: not just now; nothing changed.
        """

    async def unload_adapter(self, name: str) -> None:
        """Take no new request for the adapter, wait for its running ones to end, then free it. Unknown names pass."""

    def adapters(self) -> frozenset[str]:
        """Names that a request may use now."""

    def load(self) -> EngineLoad:
        """How busy the engine is."""
