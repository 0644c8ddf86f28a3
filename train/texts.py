"""Texts without token ids (imported, or with personal data taken out), read through the base's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, str]]
DROPPED = "[REMOVED]"
"""What stands for a text that was dropped whole (`feedback.privacy`): nothing to learn from."""


class TextReader:
    """Gives rows of a snapshot the token ids that they lack.

    Args:
        prompt_ids: a conversation's ids, with the template's opening of the answer.
        answer_ids: a text's ids without special tokens.
        end: id that ends an answer; None where the base has none.
    """

    def __init__(
        self,
        prompt_ids: Callable[[Messages], Sequence[int]],
        answer_ids: Callable[[str], Sequence[int]],
        end: int | None,
    ) -> None:
        self._prompt_ids = prompt_ids
        self._answer_ids = answer_ids
        self._end = end

    @classmethod
    def of(cls, tokenizer: Any) -> TextReader:
        """The reader of a base's tokenizer (transformers)."""

        def prompt_ids(messages: Messages) -> Sequence[int]:
            encoded = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
            ids: Sequence[int] = encoded["input_ids"]
            return ids

        def answer_ids(text: str) -> Sequence[int]:
            ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        return cls(prompt_ids, answer_ids, tokenizer.eos_token_id)

    def prompt(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the ids of its prompt."""
        if row["prompt_token_ids"] or any(turn["content"] == DROPPED for turn in row["prompt"] or ()):
            return row
        return {**row, "prompt_token_ids": tuple(self._prompt_ids(row["prompt"]))}

    def vote(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the ids of its prompt and of both answers."""
        row = self.prompt(row)
        lacking = [side for side in ("chosen", "rejected") if not row[f"{side}_token_ids"]]
        return {**row, **{f"{side}_token_ids": self._answer(row, side) for side in lacking}} if lacking else row

    def _answer(self, row: Mapping[str, Any], side: str) -> tuple[int, ...]:
        text = row[side][-1]["content"]
        if not text or text == DROPPED:
            return ()
        ends = self._end is not None and row[f"{side}_finish_reason"] == "stop"
        return (*self._answer_ids(text), *((self._end,) if ends else ()))
