"""What a token looks like by itself: a small table over the vocabulary, made once from the tokenizer.

Few votes can't teach a probe over hundreds of hidden dimensions that sentences end with a full stop or that rare
tokens make long words; a dozen surface columns can be weighed from tens of votes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = (
    "starts_word",  # first token of a word
    "characters",
    "rank",  # log of the id: byte-pair vocabularies are ordered by how early a merge was learnt
    "sentence_end",
    "question",
    "exclamation",
    "newline",
    "digit",
    "punctuation",  # any other
    "capital",
    "end_of_turn",
)
SENTENCE_END = COLUMNS.index("sentence_end")
NEWLINE = COLUMNS.index("newline")
END_OF_TURN = COLUMNS.index("end_of_turn")
ALPHABETIC = -1
"""The table's last column, no feature: whether the token holds a letter."""


def surface_table(tokenizer: Any, vocabulary: int) -> Tensor:
    """The table, (vocabulary, len(COLUMNS) + 1) float32; ids that the tokenizer doesn't know are all zero."""
    known = min(vocabulary, len(tokenizer))
    table = torch.zeros(vocabulary, len(COLUMNS) + 1)
    table[:known] = _surface(tokenizer, range(known))
    return table


def is_surface_of(table: Tensor, tokenizer: Any) -> bool:
    """Whether a table is this tokenizer's, by some hundreds of its ids: another's may be as large."""
    known = min(len(table), len(tokenizer))
    some = range(0, known, max(1, known // 512))
    return table.shape[1] == len(COLUMNS) + 1 and torch.allclose(table[list(some)], _surface(tokenizer, some))


def _surface(tokenizer: Any, ids: range) -> Tensor:
    special = {int(i) for i in tokenizer.all_special_ids}
    # decoded after a letter, because some tokenizers drop a leading space at the start of a text
    anchor = tokenizer.encode("a", add_special_tokens=False)
    texts = tokenizer.batch_decode([[*anchor, i] for i in ids], clean_up_tokenization_spaces=False)
    start = len(tokenizer.decode(anchor))
    return torch.tensor([_row(text[start:], i, special=i in special) for i, text in zip(ids, texts, strict=True)])


def _row(text: str, token_id: int, *, special: bool) -> list[float]:
    if special:
        return [0.0] * (len(COLUMNS) - 1) + [1.0, 0.0]
    core = text.strip()
    ends = core[-1:] in {".", "!", "?"}
    flags = [
        text[:1].isspace() and core[:1].isalpha(),
        min(len(core), 12) / 4,
        torch.log1p(torch.tensor(float(token_id))).item() / 4,
        ends,
        "?" in core,
        "!" in core,
        "\n" in text,
        any(c.isdigit() for c in core),
        bool(core) and not ends and not any(c.isalnum() for c in core),
        core[:1].isupper(),
        False,
        any(c.isalpha() for c in core),
    ]
    return [float(flag) for flag in flags]
