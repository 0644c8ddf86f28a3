"""The textbook head on the tiny model."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from train.base import Base
from train.reward.config import RewardConfig
from train.reward.last import LastHead, normalised, score_all, scores_of, train_last
from train.reward.votes import Answer, Votes


def planted_votes(n: int, *, seed: int = 0) -> Votes:
    """The better answer ends with token 7, the other with token 9."""
    rng = random.Random(seed)
    answers = [
        Answer((3, 4, 5 + i % 3), (*(rng.randrange(10, 40) for _ in range(3)), (7, 9)[side]))
        for i in range(n)
        for side in range(2)
    ]
    return Votes(
        answers=tuple(answers),
        first=np.arange(0, 2 * n, 2),
        second=np.arange(1, 2 * n, 2),
        tied=np.zeros(n, dtype=bool),
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.arange(n),
        voter=np.arange(n),
        reasons=((),) * n,
    )


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_what_the_last_token_tells_and_scores_unseen_answers(base: Base, lora: bool, tmp_path: Path) -> None:
    votes = planted_votes(48)
    config = RewardConfig(head="last", last_lora=lora, learning_rate=0.02, epochs=3)
    head = train_last(base, votes, np.arange(48), config, seed=0)
    unseen = planted_votes(24, seed=5)
    scores = score_all(head, unseen.answers)
    assert np.mean(scores[unseen.first] > scores[unseen.second]) > 0.9
    head = normalised(head, score_all(head, votes.answers), {})
    head.save(tmp_path)
    again = LastHead.load(tmp_path, base)
    ids = torch.tensor([[3, 4, 5, 11, 7, 0], [0, 3, 4, 12, 13, 9]])
    prompt = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]).bool()
    response = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]).bool()
    rewards = again.token_rewards({}, ids, prompt, response)
    assert rewards.count_nonzero(dim=1).tolist() == [1, 1]
    assert rewards[0, 4] != 0
    assert rewards[1, 5] != 0
    raw = score_all(head, [Answer((3, 4, 5), (11, 7)), Answer((3, 4), (12, 13, 9))])
    np.testing.assert_allclose(rewards.sum(dim=1).numpy(), (raw - head.shift) / head.scale, rtol=1e-4)
    assert again.model_id == head.model_id


def test_whoever_watches_hears_of_each_step_and_may_judge_the_head_as_it_then_is(base: Base) -> None:
    votes = planted_votes(20)
    heard: list[tuple[int, np.ndarray]] = []

    def watch(seen: int, weight: torch.Tensor) -> None:
        heard.append((seen, scores_of(base, votes.answers, weight, lora=True)))

    config = RewardConfig(head="last", learning_rate=0.02, batch_pairs=8)
    head = train_last(base, votes, np.arange(20), config, seed=0, watch=watch)
    assert heard[-1][0] == 20
    assert [seen for seen, _ in heard] == sorted({seen for seen, _ in heard})
    np.testing.assert_array_equal(heard[-1][1], score_all(head, votes.answers))
    assert np.abs(heard[0][1] - heard[-1][1]).max() > 0.01
