"""The engine's chunks as OpenAI's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.engines.base import Chunk, Ending

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one completion share."""

    id: str
    created: int
    model: str

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A `chat.completion.chunk`."""
        return self._object("chat.completion.chunk", choices) | more

    def completion(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """A `chat.completion`."""
        return self._object("chat.completion", choices) | {"usage": usage}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }


@dataclass(slots=True)
class ChoiceBuffer:
    """One answer as it grows."""

    index: int
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: Ending | None = None

    def add(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        self.text.append(chunk.text)
        self.logprobs.extend(logprob_items(chunk))
        self.finish_reason = chunk.finish_reason or self.finish_reason

    def choice(self, with_logprobs: bool) -> dict[str, Any]:
        """As a choice of a whole completion."""
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": "".join(self.text), "refusal": None},
            "logprobs": {"content": self.logprobs, "refusal": None} if with_logprobs else None,
            "finish_reason": self.finish_reason,
        }


def delta_choice(chunk: Chunk, with_logprobs: bool) -> dict[str, Any]:
    """A chunk as a choice of a streamed completion."""
    return {
        "index": chunk.index,
        "delta": {"content": chunk.text} if chunk.text else {},
        "logprobs": {"content": logprob_items(chunk), "refusal": None} if with_logprobs else None,
        "finish_reason": chunk.finish_reason,
    }


def first_choice(index: int) -> dict[str, Any]:
    """The choice that opens an answer's stream."""
    return {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def logprob_items(chunk: Chunk) -> list[dict[str, Any]]:
    """A chunk's tokens with their log-probs; empty where none were asked for."""
    tops: Sequence[tuple[Any, ...]] = chunk.top_logprobs or ((),) * len(chunk.logprobs)
    return [
        _item(token, logprob) | {"top_logprobs": [_item(other.token, other.logprob) for other in top]}
        for token, logprob, top in zip(chunk.tokens, chunk.logprobs, tops, strict=True)
    ]


def _item(token: str, logprob: float) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": max(logprob, LOWEST_LOGPROB),
        "bytes": list(token.encode("utf-8", errors="replace")),
    }
