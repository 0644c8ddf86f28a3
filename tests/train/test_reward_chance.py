"""The test against a coin: exact where votes are coins', rankings turned as wholes, sure where there is something."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from tests.train.test_reward_mix import made_votes, planted
from train.reward import probe
from train.reward.chance import by_chance
from train.reward.mix import pose
from train.reward.tokens import COLUMNS
from train.reward.votes import Votes, ballots

COINS = 60
"""Problems of which a tenth should come out at 0.1 or less: 6, with a deviation of 2.3."""


def chance_of(pooled: dict[str, np.ndarray], votes: Votes, label: np.ndarray, seed: int = 0, draws: int = 19) -> float:
    return by_chance(pose(pooled, votes, np.arange(len(votes))), label, seed, draws)


def rankings(seed: int, ballots_cast: int = 12, answers: int = 4) -> tuple[dict[str, np.ndarray], Votes]:
    """Answers ranked by coins, each ballot as its six comparisons."""
    rng = np.random.default_rng(seed)
    count = ballots_cast * answers
    pooled = {"state:0": rng.normal(size=(count, 8)), "surface": rng.normal(size=(count, len(COLUMNS) + 4))}
    pairs = [
        (start + order[a], start + order[b])
        for start in range(0, count, answers)
        for order in [rng.permutation(answers)]
        for a, b in combinations(range(answers), 2)
    ]
    each = np.repeat(np.arange(ballots_cast), len(pairs) // ballots_cast)
    votes = made_votes(rng.normal(size=count))
    n = len(pairs)
    whole = replace(
        votes,
        answers=tuple(
            replace(answer, prompt_ids=(at // answers, 2)) for at, answer in enumerate(votes.answers[:count])
        ),
        first=np.array([first for first, _ in pairs]),
        second=np.array([second for _, second in pairs]),
        tied=np.zeros(n, dtype=bool),
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=each,
        voter=each % 5,
        reasons=((),) * n,
    )
    return pooled, whole


def test_a_planted_preference_is_no_chance() -> None:
    pooled, votes = planted(48)
    assert chance_of(pooled, votes, ballots(votes)) == 1 / 20  # fitted better than all 19 turned ones


def test_coins_come_out_evenly() -> None:
    found = []
    for seed in range(COINS):
        pooled, _ = planted(32, seed)
        votes = made_votes(np.random.default_rng(1000 + seed).normal(size=64), ties=(3, 8, 9), bad=(5,))
        found.append(chance_of(pooled, votes, ballots(votes), seed))
    assert np.mean(found) == pytest.approx(0.5, abs=0.11)  # three of its deviations, 0.037
    assert 1 <= np.sum(np.array(found) <= 0.1) <= 13


def test_coins_that_rank_come_out_evenly_as_their_comparisons_turn_together() -> None:
    found, apart = [], []
    for seed in range(COINS):
        pooled, votes = rankings(seed)
        found.append(chance_of(pooled, votes, ballots(votes), seed))
        apart.append(chance_of(pooled, votes, np.arange(len(votes)), seed))
    assert np.mean(found) == pytest.approx(0.5, abs=0.11)
    assert 1 <= np.sum(np.array(found) <= 0.1) <= 13
    assert np.sum(np.array(apart) <= 0.1) > 20  # six comparisons of a ranking are no six coins


def test_the_draws_estimate_what_all_ways_of_turning_say() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(12, 3))
    votes = made_votes(features[:, 0] + 0.8 * rng.normal(size=12))
    difference = features[votes.first] - features[votes.second]
    difference /= np.sqrt((difference**2).sum(axis=1).mean())
    outcomes = probe.Outcomes(votes.tied, votes.weight, votes.margin)

    def evidence(sign: tuple[float, ...]) -> float:  # one family: all of the prior variance of 4 is its own
        turned = difference * np.array(sign)[:, None]
        return probe.fit(4.0 * turned @ turned.T, outcomes, 0.0).evidence

    exact = np.mean([evidence(sign) >= evidence((1.0,) * 6) - 1e-9 for sign in product((1.0, -1.0), repeat=6)])
    assert 0.05 < exact < 0.5
    estimate = chance_of({"state:0": features}, votes, ballots(votes), draws=1500)
    assert estimate == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1500))


def disliked() -> tuple[np.ndarray, Votes]:
    """Six winners by coins, then four both-bads, whose answers are low in the first feature."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(20, 3))
    features[12:, 0] -= 3.0
    features /= features.std(axis=0)  # as the fit takes them
    return features, made_votes(rng.normal(size=20), bad=(6, 7, 8, 9))


def test_only_winners_are_turned_and_a_both_bad_stays_one() -> None:
    features, votes = disliked()
    average = features.mean(axis=0)  # both answers of a both-bad lost to it, at a quarter of the vote's weight
    difference = np.concatenate(
        [features[votes.first] - features[votes.second], average - features[12::2], average - features[13::2]]
    )
    difference /= np.sqrt((difference**2).sum(axis=1).mean())
    tied = np.array([False] * 6 + [True] * 4 + [False] * 8)
    outcomes = probe.Outcomes(tied, np.array([1.0] * 10 + [0.25] * 8), np.zeros(18))
    nu = 2 * 4 / (12 - 4)  # equal answers tie in nu / (2 + nu) = 4 of 12 by weight

    def evidence(sign: tuple[float, ...]) -> float:
        turned = difference * np.array(sign + (1.0,) * 12)[:, None]
        return probe.fit(4.0 * turned @ turned.T, outcomes, nu).evidence

    exact = np.mean([evidence(sign) >= evidence((1.0,) * 6) - 1e-9 for sign in product((1.0, -1.0), repeat=6)])
    assert (
        exact == 27 / 64
    )  # 0.22 if the both-bads' losses turned too: what nobody likes would speak for coins' winners
    estimate = chance_of({"state:0": features}, votes, ballots(votes), draws=1500)
    assert estimate == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1500))


def test_votes_that_name_no_winner_tell_nothing_that_coins_could_not() -> None:
    """However clearly the answers called bad differ from the rest: there is nothing to turn."""
    features, votes = disliked()
    for nobody in (replace(votes, tied=np.ones(10, dtype=bool)), made_votes(features[:, 0], bad=tuple(range(10)))):
        assert chance_of({"state:0": features}, nobody, ballots(nobody)) == 1.0


def test_a_ranking_is_one_ballot_and_separate_pairs_are_two() -> None:
    _, votes = rankings(0, ballots_cast=2)
    label = ballots(votes)
    assert len(set(label[:6])) == 1
    assert len(set(label[6:])) == 1
    assert label[0] != label[6]
    alone = made_votes(np.random.default_rng(0).normal(size=20))
    assert len(set(ballots(alone))) == 10
