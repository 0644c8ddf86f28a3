"""Texts without token ids (imported, or with personal data taken out), read through the base's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import structlog

from feedback.config import TemplateValue
from train.errors import PromptRefused

Messages = Sequence[Mapping[str, str]]
log = structlog.get_logger()
DROPPED = "[REMOVED]"
"""What stands for a text that was dropped whole (`feedback.privacy`): nothing to learn from."""
_ANSWER = "Understood"


class TextReader:
    """Gives rows of a snapshot the token ids that they lack.

    Args:
        prompt_ids: a conversation's ids, with the template's opening of the answer.
        answer_ids: a text's ids without special tokens.
        end: id that ends an answer; None where the base has none.
        text_of: the text of ids, None where one is no id of the tokenizer's; without it all ids count as its own.
    """

    def __init__(
        self,
        prompt_ids: Callable[[Messages], Sequence[int]],
        answer_ids: Callable[[str], Sequence[int]],
        end: int | None,
        text_of: Callable[[Sequence[int]], str | None] | None = None,
    ) -> None:
        self._prompt_ids = prompt_ids
        self._answer_ids = answer_ids
        self._end = end
        self._text_of = text_of
        self._told: set[str] = set()

    @classmethod
    def of(
        cls, tokenizer: Any, told: Mapping[str, TemplateValue] | None = None, ends: Collection[int] = ()
    ) -> TextReader:
        """The reader of a base's tokenizer (transformers), whose chat template is told something besides.

        Args:
            ends: ids at which the base stops (`Base.eos_ids`).
        """
        more = {"add_generation_prompt": True, "return_dict": True, **(told or {})}

        def prompt_ids(messages: Messages) -> Sequence[int]:
            from jinja2 import TemplateError

            try:
                encoded = tokenizer.apply_chat_template(list(messages), **more)
            except TemplateError as error:
                raise PromptRefused(f"the base's chat template refuses a conversation: {error}") from error
            ids: Sequence[int] = encoded["input_ids"]
            return ids

        def answer_ids(text: str) -> Sequence[int]:
            ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        def text_of(ids: Sequence[int]) -> str | None:
            if max(ids) >= len(tokenizer):
                return None
            return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

        return cls(prompt_ids, answer_ids, turn_end(tokenizer, ends), text_of)

    def prompt_ids(self, messages: Messages) -> tuple[int, ...]:
        """A conversation's ids, with the template's opening of the answer.

        Raises:
            PromptRefused: the template knows no conversation of this kind.
        """
        return tuple(self._prompt_ids(messages))

    def prompt(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the ids of its prompt."""
        return self._prompt(self._own(row, ("prompt",)))

    def vote(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the ids of its prompt and of both answers."""
        row = self._prompt(self._own(row, ("prompt", "chosen", "rejected")))
        lacking = [side for side in ("chosen", "rejected") if not row[f"{side}_token_ids"]]
        return {**row, **{f"{side}_token_ids": self._answer(row, side) for side in lacking}} if lacking else row

    def _own(self, row: Mapping[str, Any], parts: Sequence[str]) -> Mapping[str, Any]:
        """The row without ids that another tokenizer gave: the base was replaced since, and its texts are read anew."""
        ids, turns = row["prompt_token_ids"], row["prompt"]
        if self._text_of is None or not ids or not turns:
            return row
        text = self._text_of(ids)
        if text is not None and (_bare(turns[-1]["content"]) in _bare(text)):
            return row
        try:
            if text is not None and tuple(ids) == self.prompt_ids(turns):
                return row  # a tokenizer that doesn't give back every letter
        except PromptRefused:
            pass
        self._tell("texts_read_anew", "the base was another when they were written: their token ids are not this one's")
        return {**row, **{f"{part}_token_ids": () for part in parts}}

    def _prompt(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if row["prompt_token_ids"] or any(turn["content"] == DROPPED for turn in row["prompt"] or ()):
            return row
        try:
            return {**row, "prompt_token_ids": self.prompt_ids(row["prompt"])}
        except PromptRefused as error:  # a system turn, say, where the model knows none: that row teaches nothing
            self._tell("prompts_left_out", str(error))
            return row

    def _tell(self, event: str, reason: str) -> None:
        """Of the first alone; there may be thousands."""
        if event not in self._told:
            log.warning(event, reason=reason)
        self._told.add(event)

    def _answer(self, row: Mapping[str, Any], side: str) -> tuple[int, ...]:
        text = row[side][-1]["content"]
        if not text or text == DROPPED:
            return ()
        ends = self._end is not None and row[f"{side}_finish_reason"] == "stop"
        return (*self._answer_ids(text), *((self._end,) if ends else ()))


def turn_end(tokenizer: Any, ends: Collection[int]) -> int | None:
    """The id that ends an answer in a conversation; None where the base has none.

    Often it is not the one that ends a text: Gemma closes turns with `<end_of_turn>`, Phi 3 with `<|end|>`, and GLM
    with what opens the next. So it is the first of `ends` that the chat template writes after an answer.

    Args:
        tokenizer: the base's (transformers).
        ends: ids at which the base stops.
    """
    from jinja2 import TemplateError

    own: int | None = tokenizer.eos_token_id
    turns = [
        {"role": role, "content": text} for role, text in (("user", "Hello"), ("assistant", _ANSWER), ("user", "Why"))
    ]
    try:
        written = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError, TypeError):  # it has none, or one for other conversations: it tells nothing
        written = ""
    after = tokenizer(written.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
    closing: int | None = next((one for one in after if one in ends), None)
    if closing is not None:
        return closing
    return own if own in ends or not ends else min(ends)


def _bare(text: str) -> str:
    """Without what templates and tokenizers change about a text: spaces and case."""
    return "".join(text.split()).casefold()
