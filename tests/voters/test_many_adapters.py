"""Reliability where many adapters have come and gone: the work goes with the votes, not with voters times adapters."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from feedback.config import VotersConfig
from feedback.voters import Ballots, vote_weights
from feedback.voters.cells import records
from feedback.voters.reliability import NAMED, fit

CONFIG = VotersConfig()


def ballots_of(voter: np.ndarray, left: np.ndarray, right: np.ndarray, choice: np.ndarray) -> Ballots:
    """Unhurried votes on prompts that are all different."""
    size = len(voter)
    times = np.arange(size) * 60_000
    return Ballots(
        voters=tuple(f"v_{number:05}" for number in range(voter.max() + 1)),
        adapters=tuple(f"policy-{number:06}" for number in range(max(left.max(), right.max()) + 1)),
        voter=voter.astype(np.int32),
        left=left.astype(np.int32),
        right=right.astype(np.int32),
        choice=choice.astype(np.int8),
        gold=np.full(size, -1, np.int8),
        leak=np.zeros(size, np.bool_),
        prompt=np.arange(size),
        length_a=np.full(size, 50, np.int32),
        length_b=np.full(size, 50, np.int32),
        shown_ms=times,
        cast_ms=times + 9_000,
        part=np.zeros(size, np.int8),
        among=np.ones(size, np.int8),
    )


def one_after_another(voters: int, adapters: int, votes: int) -> Ballots:
    """Each adapter against the one before it for a while, as they come into office."""
    draw = np.random.default_rng(1)
    left = np.sort(draw.integers(1, adapters, votes))
    return ballots_of(draw.integers(0, voters, votes), left, left - 1, draw.integers(0, 2, votes))


def test_memory_goes_with_the_votes() -> None:
    told = one_after_another(voters=2_000, adapters=300, votes=8_000)
    tracemalloc.start()
    try:
        vote_weights(told, CONFIG)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    dense = 2_000 * (len(NAMED) + 2 * 300) * 8  # one table of voters by classes
    assert peak < dense


def test_the_shares_are_those_of_the_whole_table() -> None:
    found = fit(records(told := one_after_another(60, 9, 900), CONFIG), told.adapters, CONFIG)
    posterior = found.posterior
    assert posterior.sum(axis=1) == pytest.approx(1.0)
    prior = np.full(len(found.classes), CONFIG.suspicion / (len(found.classes) - 1))
    prior[0] = 1 - CONFIG.suspicion
    counted = posterior.sum(axis=0) + 10 * prior
    assert found.shares == pytest.approx(counted / counted.sum(), rel=1e-3)


def test_of_adapters_that_a_voter_never_met_their_votes_say_nothing() -> None:
    """Voter 0 meets adapters 0 and 1 alone: any other's promoters are as likely as their share among all."""
    voter, left = np.repeat([0, 1, 2], 20), np.repeat([1, 3, 3], 20)
    told = ballots_of(voter, left, left - 1, np.tile([0, 1], 30))
    found = fit(records(told, CONFIG), told.adapters, CONFIG)
    unmet = [found.classes.index(f"{kind}:policy-{n:06}") for kind in ("promoter", "detractor") for n in (2, 3)]
    ratios = found.posterior[0, unmet] / found.shares[unmet]
    assert ratios == pytest.approx(ratios[0])


def test_a_very_busy_voter_who_met_all_is_told_without_overflow() -> None:
    votes = 6_000
    voter = np.concatenate([np.zeros(votes, np.int64), np.arange(1, 30)])
    choice = np.concatenate([np.zeros(votes, np.int64), np.arange(1, 30) % 2])
    told = ballots_of(voter, np.full(len(voter), 1), np.zeros(len(voter), np.int64), choice)
    told.cast_ms[:votes] = told.shown_ms[:votes] + 10  # all of them hasty, and all for the left
    found = fit(records(told, CONFIG), told.adapters, CONFIG)
    assert np.isfinite(found.posterior).all()
    assert found.posterior.sum(axis=1) == pytest.approx(1.0)
