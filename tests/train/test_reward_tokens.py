"""The table over the vocabulary."""

from __future__ import annotations

import pytest

from train.reward.features import STANDING
from train.reward.tokens import COLUMNS, surface_table

TEXTS = ("a", " wonderful", "Terrible", "good", " good", "?\n", "</s>")


class _Tokenizer:
    """Knows `TEXTS`, the last of which ends a turn."""

    all_special_ids = (len(TEXTS) - 1,)

    def __len__(self) -> int:
        return len(TEXTS)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [TEXTS.index(text)]

    def decode(self, ids: list[int]) -> str:
        return "".join(TEXTS[i] for i in ids)

    def batch_decode(self, batch: list[list[int]], *, clean_up_tokenization_spaces: bool) -> list[str]:
        assert not clean_up_tokenization_spaces
        return [self.decode(ids) for ids in batch]


def column(name: str) -> dict[str, float]:
    table = surface_table(_Tokenizer(), len(TEXTS) + 2)
    assert table.shape == (len(TEXTS) + 2, len(COLUMNS) + 1)
    assert not table[len(TEXTS) :].any(), "ids that the tokenizer doesn't know"
    return dict(zip(TEXTS, table[:, COLUMNS.index(name)].tolist(), strict=False))


def test_words_sound_as_raters_found_and_the_rest_of_a_word_has_no_sound() -> None:
    # VADER's means: wonderful 2.7, terrible -2.1, good 1.9, of 4 at most
    pleasant, unpleasant = column("pleasant"), column("unpleasant")
    assert pleasant == pytest.approx(dict.fromkeys(TEXTS, 0.0) | {" wonderful": 0.675, " good": 0.475})
    assert unpleasant == pytest.approx(dict.fromkeys(TEXTS, 0.0) | {"Terrible": 0.525})


def test_classes_of_tokens() -> None:
    assert column("starts_word") == dict.fromkeys(TEXTS, 0.0) | {" wonderful": 1.0, " good": 1.0}
    assert column("capital") == dict.fromkeys(TEXTS, 0.0) | {"Terrible": 1.0}
    assert column("question") == column("newline") == dict.fromkeys(TEXTS, 0.0) | {"?\n": 1.0}
    assert column("end_of_turn") == dict.fromkeys(TEXTS, 0.0) | {"</s>": 1.0}


def test_what_a_critic_is_told_of_how_an_answer_stands_is_what_open_cycles_have_been_told() -> None:
    assert STANDING == 20, "a checkpoint of an older version goes on"
