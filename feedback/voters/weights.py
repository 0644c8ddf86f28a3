"""From ballots to weights in [0, 1]: how much each voter, and each vote, counts. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feedback.config import VotersConfig
from feedback.voters.ballots import NO_GOLD, Ballots
from feedback.voters.cells import Floats, records, repeat_factors
from feedback.voters.reliability import fit

_DIGITS = 4
"""Weights are rounded, so that equal votes give equal bytes on machines that sum in another order."""
_LEVELLED = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What votes and voters count.

    Attributes:
        votes: (N,) of each row: its voter's, less what repeats are worth; 0 for planted pairs. The comparisons of a
            ranking have its whole weight each; who adds them up takes `Ballots.share` of it.
        voters: of each voter, the leverage cap included: what a vote counts where nothing else is held against it.
    """

    votes: Floats
    voters: dict[str, float]


def weights_of(ballots: Ballots, config: VotersConfig) -> Weights:
    """What votes and voters count, by one fit.

    The same votes give the same weights in any order. Whoever tests a contest by them should know that they look at
    that contest's votes too (docs/voting.md, "What the weights may be used for").
    """
    trusted = _trust(ballots, config)
    votes = trusted[ballots.voter] * _fitness(ballots, config)
    scales = _cap_of(ballots, votes * ballots.share, config)
    told = np.round(trusted * scales, _DIGITS)
    voters = {name: float(weight) for name, weight in zip(ballots.voters, told, strict=True)}
    return Weights(np.round(votes * scales[ballots.voter], _DIGITS), voters)


def voter_weights(ballots: Ballots, config: VotersConfig) -> dict[str, float]:
    """`Weights.voters` alone."""
    return weights_of(ballots, config).voters


def voter_trust(ballots: Ballots, config: VotersConfig) -> dict[str, float]:
    """How far each voter is believed, 0 to 1, without the leverage cap: for those who give each voter one ballot."""
    trusted = np.round(_trust(ballots, config), _DIGITS)
    return {name: float(weight) for name, weight in zip(ballots.voters, trusted, strict=True)}


def vote_weights(ballots: Ballots, config: VotersConfig) -> Floats:
    """`Weights.votes` alone."""
    return weights_of(ballots, config).votes


def weigher(config: VotersConfig) -> Callable[[Ballots], Floats]:
    """`vote_weights` with this configuration: what a dataset takes to weigh its snapshots."""
    return lambda ballots: vote_weights(ballots, config)


def leverage_scales(totals: Floats, max_share: float) -> Floats:
    """Factors (V,) in [0, 1] after which no voter has more than `max_share` of the total.

    Where that can't be (fewer than 1 / max_share voters have any weight), all are scaled to the least total.

    Args:
        totals: (V,) sum of each voter's weights; those with none keep the factor 1.
    """
    size = len(totals)
    given = totals[totals > 0]
    if not len(given):
        return np.ones(size)
    limit = _level(np.sort(given), max_share)
    return np.where(totals > limit, limit / np.where(totals > 0, totals, 1.0), 1.0)


def _level(rising: Floats, max_share: float) -> float:
    """The most that a voter may have: all above it are cut to it, and it is then `max_share` of what remains.

    With the k heaviest cut to L: L = s (rest + k L), so L = s rest / (1 - k s); the smallest k that cuts them all wins.
    """
    if max_share * len(rising) <= 1 + _LEVELLED:
        return float(rising[0])
    below = np.concatenate([[0.0], np.cumsum(rising)])
    for cut in range(len(rising)):
        kept = len(rising) - cut
        room = 1 - cut * max_share
        limit = max_share * below[kept] / room
        if rising[kept - 1] <= limit * (1 + _LEVELLED):
            return float(limit)
    return float(rising[0])


def _trust(ballots: Ballots, config: VotersConfig) -> Floats:
    """(V,) how much likelier each voter is to be honest than anybody before a vote is seen: 1 where it is no less.

    So nothing is taken from a voter of whom little is known, and nothing from anybody where votes aren't weighed.
    """
    if not config.weigh or not len(ballots):
        return np.ones(len(ballots.voters))
    honest = fit(records(ballots, config), ballots.adapters, config).honest
    trusted: Floats = np.minimum(1.0, honest / (1 - config.suspicion))
    return trusted


def _fitness(ballots: Ballots, config: VotersConfig) -> Floats:
    """(N,) what a vote counts, whoever cast it."""
    real: Floats = (ballots.gold == NO_GOLD).astype(np.float64)
    return real * repeat_factors(ballots, config.repeats) if config.weigh else real


def _cap_of(ballots: Ballots, votes: Floats, config: VotersConfig) -> Floats:
    """(V,) factors of the leverage cap on these votes' weights."""
    size = len(ballots.voters)
    totals: Floats = np.bincount(ballots.voter, votes, minlength=size).astype(np.float64)
    active = int((totals > 0).sum())
    if not config.weigh or active < config.cap_from_voters:
        return np.ones(size)
    return leverage_scales(totals, max(config.max_share, 2 / active))
