"""Votes kept from the reward model, and where they say that a policy is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from tests.train.tiny_ppo import config, train
from train.base import Base
from train.config import GovernorConfig
from train.gold import Point, of_rows, passed, peak, withheld
from train.governor import Judgement
from train.reward.votes import Answer, Votes


def some_votes(n: int) -> Votes:
    """Two answers a vote, two votes a conversation; each answer of an even vote is voted on again in the next one."""
    pairs = np.array([(2 * (row // 4) + row % 2, 2 * (row // 4) + 1 + row % 2) for row in range(n)])
    return Votes(
        answers=tuple(Answer((1, 2), (i,)) for i in range(int(pairs.max()) + 1)),
        first=pairs[:, 0],
        second=pairs[:, 1],
        tied=np.zeros(n, dtype=bool),
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.arange(n) // 2,
        voter=np.arange(n) % 5,
        reasons=((),) * n,
    )


@dataclass(frozen=True)
class WantsTwo:
    """Gold for `tiny_ppo.WantsTokens`: pays for the first two of its tokens, and takes as much for every one more."""

    layers: tuple[int, ...] = (0, 1)

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        paid = (token_ids % 8 == 5) & response_mask
        return paid * (1.0 - 2.0 * (paid.cumsum(1) > 2))


def curve(kls: list[float], alpha: float, beta: float, error: float = 0.05, level: float = 0.2) -> list[Point]:
    """Points on gold = level + d (alpha - beta log d)."""
    roots = [math.sqrt(kl) for kl in kls]
    return [
        Point(kl, level + d * (alpha - (beta * math.log(d) if d else 0.0)), error)
        for kl, d in zip(kls, roots, strict=True)
    ]


def test_the_peak_by_hand() -> None:
    # alpha 1, beta 0.5: slope 1 - 0.5 (log d + 1) is 0 at d = e, that is at e^2 = 7.389 nats
    points = curve([0.0, 1.0, 4.0, 6.0], 1.0, 0.5)
    assert peak(points) == pytest.approx(math.e**2)
    assert passed(points) is None
    assert passed([*points, *curve([10.0], 1.0, 0.5)]) is None  # beyond; 0.01 worse than the best, known to 0.07
    assert passed([*points, *curve([16.0], 1.0, 0.5)]) == pytest.approx(math.e**2)  # 4 (1 - log 2) = 1.23 to 1.39


def test_a_policy_that_has_lost_before_the_peak_goes_on() -> None:
    sure = curve([0.0, 1.0, 4.0, 6.0, 8.0], 1.0, 0.5, error=0.001)
    assert peak([*sure, Point(5.0, 1.0, 0.05)]) == pytest.approx(math.e**2, rel=0.05)
    assert passed([*sure, Point(5.0, 1.0, 0.05)]) is None  # a third worse than the best, by chance or by a bad step
    assert passed([*sure, Point(9.0, 1.0, 0.05)]) == pytest.approx(math.e**2, rel=0.05)


def test_no_peak_without_a_clear_bend() -> None:
    assert peak(curve([0.0, 1.0, 4.0, 9.0], 1.0, 0.0)) is None  # straight
    assert peak(curve([0.0, 1.0, 4.0, 9.0], 1.0, -0.3)) is None  # bends up
    assert peak(curve([0.0, 1.0, 4.0, 9.0], 1.0, 0.5, error=5.0)) is None  # lost in noise
    assert peak(curve([0.0, 1.0, 4.0], 1.0, 0.5)) is None  # three points always fit
    assert peak(curve([0.0, 4.0, 4.0, 4.0], 1.0, 0.5)) is None  # two places tell no bend


def test_a_policy_past_the_peak_ends_the_run() -> None:
    judged = Judgement(True).past(7.39)
    assert (judged.within, judged.final) == (False, True)
    assert "7.4 nats" in judged.breaches[0]
    assert Judgement(True).past(None) == Judgement(True)


def test_votes_are_kept_only_where_there_are_many_and_share_nothing_with_the_rest() -> None:
    votes = some_votes(300)
    config = GovernorConfig(gold_votes=votes.decisive, gold_share=0.25)
    learnt, kept = withheld(votes, config, seed=3)
    assert len(kept) == pytest.approx(0.25 * len(votes), rel=0.2)
    assert not set(votes.conversation[learnt]) & set(votes.conversation[kept])
    ends = [set(np.concatenate([votes.first[rows], votes.second[rows]])) for rows in (learnt, kept)]
    assert not ends[0] & ends[1]
    for off in (GovernorConfig(gold_votes=votes.decisive + 1), config.model_copy(update={"gold_share": 0.0})):
        everything, none = withheld(votes, off, seed=3)
        assert len(everything) == len(votes)
        assert not len(none)


def test_some_of_the_votes_keep_their_answers_numbers() -> None:
    votes = replace(some_votes(6), vote_ids=tuple("abcdef"))
    some = of_rows(votes, np.array([4, 1]))
    assert some.vote_ids == ("e", "b")
    assert some.answers == votes.answers
    assert some.first.tolist() == [votes.first[4], votes.first[1]]
    assert len(some) == 2


@pytest.mark.slow
def test_ppo_stops_where_votes_that_the_reward_never_saw_peak(base: Base, tmp_path: Path) -> None:
    loose = {"min_distinct_ratio": 0, "max_perplexity_ratio": 1e9, "max_kl": 1e9, "min_topic_ratio": 0}
    settings = config(episodes=64, iterations=14)
    settings = settings.model_copy(update={"governor": GovernorConfig.model_validate(loose)})
    result = train(base, tmp_path, settings, witness=WantsTwo())
    gold = [metrics.gold for metrics in result.metrics]
    assert len(result.metrics) < 15  # stopped
    assert result.judgements[-1].final
    assert gold[result.chosen] == max(gold)
    assert gold[-1] < max(gold)
    assert result.metrics[-1].score > result.metrics[result.chosen].score  # the proxy would have gone on
