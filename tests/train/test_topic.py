"""How much of a prompt's wording answers take up, worked out by hand on a vocabulary of ten."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from train.topic import Topic

TEXTS = ["<s>", "bread", " bread", " Bread", " fresh", " the", "...", " to", " oven", " cool"]


class Tokenizer:
    all_special_ids = (0,)

    def __len__(self) -> int:
        return len(TEXTS)

    def batch_decode(self, ids: list[list[int]], **_: object) -> list[str]:
        return [TEXTS[i] for (i,) in ids]


@dataclass(frozen=True)
class Turn:
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def topic() -> Topic:
    """Three prompts; "the" is in all of them, "bread" in one, "fresh" in two."""
    return Topic.of(Tokenizer(), 12, [(0, 5, 1, 4), (0, 5, 4), (0, 5, 8)])


def weight(prompts: int) -> float:
    return (1 - math.log1p(prompts) / math.log1p(3)) ** 2


def test_spellings_share_a_word_and_common_words_count_for_nothing() -> None:
    found = topic()
    assert found.word[1] == found.word[2] == found.word[3]
    assert found.word[[0, 6, 7, 10, 11]].tolist() == [-1] * 5  # special, a mark, too short, beyond the vocabulary
    asked = found.asked(Turn((0, 5, 1, 4, 7), ()))
    assert [found.spellings[word] for word in asked.tolist()] == [(1, 2, 3), (4,)]


def test_the_share_taken_up_is_weighed_by_rarity() -> None:
    bread, fresh = weight(1), weight(2)
    turns = [Turn((0, 5, 1, 4), (3, 3, 9)), Turn((0, 5, 1, 4), (9, 9)), Turn((0, 5, 1, 4), (4, 2))]
    assert topic().kept(turns) == pytest.approx((bread / (bread + fresh) + 0 + 1) / 3)


def test_prompts_without_a_word_that_counts_are_left_out() -> None:
    turns = [Turn((0, 5), (9,)), Turn((0, 8), (8,))]
    assert topic().kept(turns) == 1.0
    assert topic().kept(turns[:1]) == 1.0


def test_rewards_are_paid_once_where_a_word_is_first_said_and_add_up_to_the_share() -> None:
    turns = [Turn((0, 5, 1, 4), (9, 2, 1, 4)), Turn((0, 8), (9,))]
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    paid = topic().rewards(turns, mask)
    bread = weight(1) / (weight(1) + weight(2))
    torch.testing.assert_close(paid, torch.tensor([[0, bread, 0, 1 - bread], [0.0] * 4]))


def test_every_spelling_that_would_be_paid_is_foreseen() -> None:
    turns = [Turn((0, 5, 1, 4), (9, 2, 4)), Turn((0, 8), (9,))]
    ids, extra = topic().tilt(turns, 2.0, torch.device("cpu"))
    assert ids.shape == extra.shape == (4, 4)
    rows = torch.zeros(4, 12).scatter_add_(1, ids, extra)
    bread = 2 * weight(1) / (weight(1) + weight(2))
    for place, (bread_pays, fresh_pays) in enumerate([(bread, 2 - bread), (bread, 2 - bread), (0.0, 2 - bread)]):
        assert rows[place, [1, 2, 3, 4]].tolist() == pytest.approx([bread_pays] * 3 + [fresh_pays])
    assert rows[3].nonzero()[:, 0].tolist() == [8]
    assert float(rows[3, 8]) == pytest.approx(2.0)
