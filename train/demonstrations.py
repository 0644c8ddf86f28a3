"""Demonstrations: answers that people wrote or corrected themselves, as token ids to imitate. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Edit:
    """A voter's better answer, as the snapshot has it.

    Attributes:
        prompt_ids: what it answers.
        text: the answer in the voter's words.
        conversation: it belongs to; demonstrations are held out by conversation.
        weight: of the vote (the voter's reliability).
    """

    prompt_ids: tuple[int, ...]
    text: str
    conversation: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An answer to imitate; a `train.packing.Turn`."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    conversation: str
    weight: float = 1.0


def read_edits(rows: Iterable[Mapping[str, Any]]) -> tuple[Edit, ...]:
    """Edits of a snapshot's rows, in their order.

    An edit that is blank, or that repeats the answer that it was made from, says nothing that the vote doesn't; the
    same edit of the same prompt counts once.
    """
    found: dict[tuple[tuple[int, ...], str], Edit] = {}
    for row in rows:
        text, prompt = (row.get("edited") or "").strip(), tuple(row["prompt_token_ids"] or ())
        shown = {message["content"].strip() for side in ("chosen", "rejected") for message in row.get(side) or ()}
        if text and prompt and text not in shown:
            weight = row.get("weight")
            edit = Edit(prompt, text, str(row["conversation_id"]), 1.0 if weight is None else float(weight))
            found.setdefault((prompt, text), edit)
    return tuple(found.values())


def encode(
    edits: Sequence[Edit],
    tokens_of: Callable[[str], Sequence[int]],
    *,
    end: int | None,
    special: frozenset[int],
    longest: int,
    longest_prompt: int,
) -> tuple[Demonstration, ...]:
    """Edits as token ids, each ended by the token that ends a turn, so that the policy learns to stop.

    Left out: what is longer than `longest` tokens (cut off, it would teach not to end), prompts beyond that bound of
    theirs, weights of 0, and text that spells a control token of the tokenizer (it would end or forge a turn).

    Args:
        edits: as read.
        tokens_of: the tokenizer, without special tokens of its own.
        end: id that ends a turn; None where the model has none.
        special: ids that no text may hold.
        longest: tokens of an answer, `end` included.
        longest_prompt: tokens of a prompt.
    """
    made = []
    for edit in edits:
        ids = tuple(tokens_of(edit.text))
        whole = ids if end is None else (*ids, end)
        fits = ids and len(whole) <= longest and len(edit.prompt_ids) <= longest_prompt
        if fits and edit.weight > 0 and not special & set(ids):
            made.append(Demonstration(edit.prompt_ids, whole, edit.conversation, edit.weight))
    return tuple(made)
