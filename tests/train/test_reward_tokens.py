"""The table over the vocabulary."""

from __future__ import annotations

import pytest
import torch

from train.reward.features import STANDING, sentence_ends, surface
from train.reward.tokens import COLUMNS, surface_table

TEXTS = ("a", " wonderful", "Terrible", "good", " good", "?\n", "。", "1", ".", "\n\n", "…", "</s>")


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
    assert column("question") == dict.fromkeys(TEXTS, 0.0) | {"?\n": 1.0}
    assert column("newline") == dict.fromkeys(TEXTS, 0.0) | {"?\n": 1.0, "\n\n": 1.0}
    assert column("sentence_end") == dict.fromkeys(TEXTS, 0.0) | {"?\n": 1.0, "。": 1.0, ".": 1.0, "…": 1.0}
    assert column("end_of_turn") == dict.fromkeys(TEXTS, 0.0) | {"</s>": 1.0}


def test_only_what_holds_a_letter_is_a_sentence() -> None:
    texts = ("1", ".", " good", ".", "\n\n", "…", "a", "。", ".", " good", "</s>")
    by_hand = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]  # " good." ends one, then "a。", then " good" with the turn
    table = surface_table(_Tokenizer(), len(TEXTS))
    ids = torch.tensor([[TEXTS.index(text) for text in texts]] * 2)
    answer = torch.ones_like(ids, dtype=torch.bool)
    answer[1, :3] = False  # the second answer begins after " good": its first stop has no word before it
    assert sentence_ends(table[ids] * answer.unsqueeze(-1)).tolist() == [by_hand, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1]]
    first_sentence = surface(ids, answer, table)[..., len(COLUMNS)]
    assert first_sentence.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0]]


def test_what_a_critic_is_told_of_how_an_answer_stands_is_what_open_cycles_have_been_told() -> None:
    assert STANDING == 20, "a checkpoint of an older version goes on"
