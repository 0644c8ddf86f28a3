from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betaln

from feedback.config import VotersConfig
from feedback.voters.beta_binomial import BetaBinomial
from feedback.voters.cells import hasty, records
from feedback.voters.reliability import HONEST, LEFT, RANDOM, Reliability, fit
from tests.voters.elections import Voter, always_left, coin, election, honest, promoter

CONFIG = VotersConfig()


def test_records_count_by_hand() -> None:
    found = records(election({"l": always_left}, 40, gold=0.25), CONFIG)
    cells = found.cells
    assert found.right[0] == found.self_right[0] == 0
    assert found.left[0] + found.gold_right[0] + found.gold_wrong[0] == 40
    assert found.gold_left[0] == found.gold_right[0] + found.gold_wrong[0] > 0
    assert found.self_left[0] + cells.wins.sum() + cells.losses.sum() == found.left[0]
    assert (cells.first.tolist(), cells.second.tolist()) == ([0], [1])
    assert (found.hasty[0], found.unhurried[0]) == (0, 40)


def test_the_first_of_a_contest_is_the_one_whose_name_comes_first() -> None:
    found = records(election({"x": promoter}, 40, gold=0.0), CONFIG)
    assert (found.cells.wins[0], found.cells.losses[0] > 10) == (0, True)  # "base" comes before "policy-000001"


def test_a_vote_right_after_ones_own_vote_before_is_hasty() -> None:
    ballots = election({"u": coin, "v": coin}, 3)
    ballots.cast_ms[:] = [10_000, 12_999, 30_000, 10_500, 10_600, 90_000]
    ballots.shown_ms[:] = 0
    ballots.shown_ms[5] = 89_000
    assert hasty(ballots, CONFIG).tolist() == [False, True, False, False, True, True]


def test_the_rate_of_a_contest_is_the_honest_voters() -> None:
    voters: dict[str, Voter] = {f"v{n}": honest(0.55) for n in range(40)}
    found = fit_of({**voters, **{f"z{n}": promoter for n in range(8)}})
    assert 1 - found.rates[0] == pytest.approx(0.55, abs=0.04)


def test_each_kind_is_called_by_its_name() -> None:
    voters: dict[str, Voter] = {f"v{n:02}": honest(0.55) for n in range(40)}
    found = fit_of({**voters, "w": coin, "x": always_left, "y": promoter})
    coin_row, left_row, promoter_row = found.posterior[-3:]
    assert coin_row.argmax() == RANDOM
    assert left_row.argmax() == LEFT
    promotes = [found.classes.index(name) for name in ("promoter:policy-000001", "detractor:base")]
    assert promoter_row[promotes].sum() > 0.9
    assert (found.posterior[:40].argmax(axis=1) == HONEST).sum() >= 38
    assert found.posterior.sum(axis=1) == pytest.approx(1.0)
    assert found.shares.sum() == pytest.approx(1.0)


def test_a_sequence_of_a_beta_rate_has_the_textbook_probability() -> None:
    wins, losses = np.array([3, 0, 7]), np.array([2, 0, 0])
    sequences = BetaBinomial(wins, losses, np.zeros(3, dtype=np.int64), 1, 24.0)
    found = sequences.log_probability(np.array([6.0]))
    assert found == pytest.approx(betaln(6 + wins, 18 + losses) - betaln(6, 18))
    assert math.exp(found[1]) == 1.0


def fit_of(voters: dict[str, Voter]) -> Reliability:
    ballots = election(voters, 80, gold=0.15)
    return fit(records(ballots, CONFIG), ballots.adapters, CONFIG)
