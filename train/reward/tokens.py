"""What a token looks like by itself: a small table over the vocabulary, made once from the tokenizer.

Few votes can't teach a probe over hundreds of hidden dimensions that sentences end with a full stop, that rare tokens
make long words, or which words sound kind; a dozen surface columns can be weighed from tens of votes.

How a word sounds is the mean of ten raters' judgements (VADER's lexicon, 7,500 English words: Hutto & Gilbert 2014). A
base this small has no such direction that tens of votes would find; good or bad is the first thing that people's
judgements of words differ in (Osgood, Suci & Tannenbaum 1957). Of a word in several tokens the first counts, where it
is a word itself; other languages have zeros.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
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
    "pleasant",  # how good its word sounds, 0 to 1
    "unpleasant",  # how bad
)
SENTENCE_END = COLUMNS.index("sentence_end")
NEWLINE = COLUMNS.index("newline")
END_OF_TURN = COLUMNS.index("end_of_turn")
PLEASANT = COLUMNS.index("pleasant")
"""Columns from here on came later: heads of before have none of them."""
STRONGEST_VALENCE = 4.0
"""Raters gave words -4 to 4."""
ALPHABETIC = -1
"""The table's last column, no feature: whether the token holds a letter. What holds none is no sentence."""
QUESTION_MARKS = frozenset("?？؟")
EXCLAMATION_MARKS = frozenset("!！")
TERMINATORS = QUESTION_MARKS | EXCLAMATION_MARKS | frozenset(".…。।۔")
"""Marks that end sentences: Latin, Chinese and Japanese, Arabic and Urdu, Devanagari."""


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
        return [float(name == "end_of_turn") for name in COLUMNS] + [0.0]
    core = text.strip()
    ends = bool(core) and core[-1] in TERMINATORS
    flags = [
        text[:1].isspace() and core[:1].isalpha(),
        min(len(core), 12) / 4,
        torch.log1p(torch.tensor(float(token_id))).item() / 4,
        ends,
        bool(QUESTION_MARKS & set(core)),
        bool(EXCLAMATION_MARKS & set(core)),
        "\n" in text,
        any(c.isdigit() for c in core),
        bool(core) and not ends and not any(c.isalnum() for c in core),
        core[:1].isupper(),
        False,
        *_sound(text),
        any(c.isalpha() for c in core),
    ]
    return [float(flag) for flag in flags]


def _sound(text: str) -> tuple[float, float]:
    """How good and how bad the word sounds that a token begins, each 0 to 1; what goes on with a word has no sound."""
    core = text.strip()
    begins = text[:1].isspace() or core[:1].isupper()
    valence = lexicon().get(core.lower(), 0.0) / STRONGEST_VALENCE if begins else 0.0
    return max(valence, 0.0), max(-valence, 0.0)


@cache
def lexicon() -> dict[str, float]:
    """VADER's words with the mean of their ratings, -4 to 4."""
    lines = files("vaderSentiment").joinpath("vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split("\t") for line in lines)
    return {entry[0]: float(entry[1]) for entry in entries if entry[0].isalpha()}
