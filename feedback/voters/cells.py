"""What each voter's record comes down to: counts a voter, and counts a voter and contest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feedback.config import VotersConfig
from feedback.voters.ballots import NO_GOLD, A, B, Ballots

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """The records of V voters.

    Attributes:
        left, right: (V,) decisive votes for the left and the right answer of pairs that nobody planted.
        self_left, self_right: (V,) those of them in pairs of one adapter with itself.
        gold_right, gold_wrong: (V,) planted pairs judged right; wrongly or not at all.
        gold_left: (V,) planted pairs in which the left answer was chosen.
        hasty, unhurried: (V,) votes too soon to have read, and the others.
        cells: each voter's votes in each contest between two adapters.
    """

    left: Floats
    right: Floats
    self_left: Floats
    self_right: Floats
    gold_right: Floats
    gold_wrong: Floats
    gold_left: Floats
    hasty: Floats
    unhurried: Floats
    cells: Cells

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """C pairs of a voter and a contest.

    Attributes:
        voter: (C,) the voter.
        contest: (C,) the contest, 0 to M - 1.
        first, second: (M,) its two adapters, the lower number first.
        wins, losses: (C,) decisive votes for the first and for the second.
    """

    voter: Ints
    contest: Ints
    first: Ints
    second: Ints
    wins: Ints
    losses: Ints


def records(ballots: Ballots, config: VotersConfig) -> Records:
    """Count what the ballots say of their voters; of a ranking its lead, for its comparisons are one act."""
    ballots = ballots.only(ballots.lead)
    size = len(ballots.voters)
    decisive, gold = ballots.decisive, ballots.gold != NO_GOLD
    alone = (ballots.left == ballots.right) & ~gold
    soon = hasty(ballots, config)
    timed = ballots.cast_ms != ballots.shown_ms  # imported votes have no times of their own

    def count(mask: NDArray[np.bool_]) -> Floats:
        return np.bincount(ballots.voter[mask], minlength=size).astype(np.float64)

    return Records(
        left=count((alone | ballots.fair) & (ballots.choice == A)),
        right=count((alone | ballots.fair) & (ballots.choice == B)),
        self_left=count(alone & (ballots.choice == A)),
        self_right=count(alone & (ballots.choice == B)),
        gold_right=count(gold & (ballots.choice == ballots.gold)),
        gold_wrong=count(gold & (ballots.choice != ballots.gold)),
        gold_left=count(gold & (ballots.choice == A)),
        hasty=count(soon & timed),
        unhurried=count(~soon & timed),
        cells=_cells(ballots.only(ballots.fair & decisive)),
    )


def hasty(ballots: Ballots, config: VotersConfig) -> NDArray[np.bool_]:
    """(N,) votes cast too soon after the answers were complete, or after the same voter's vote before."""
    order = np.lexsort((ballots.cast_ms, ballots.voter))
    cast, voter = ballots.cast_ms[order], ballots.voter[order]
    burst = np.zeros(len(ballots), dtype=np.bool_)
    burst[order[1:]] = (voter[1:] == voter[:-1]) & (np.diff(cast) < config.burst_ms)
    unread: NDArray[np.bool_] = ballots.cast_ms - ballots.shown_ms < config.hasty_ms
    return unread | burst


def repeat_factors(ballots: Ballots, limit: int) -> Floats:
    """(N,) 1, or less where one voter voted more than `limit` times on one prompt: these share the limit's weight."""
    if not len(ballots):
        return np.empty(0)
    _, group = np.unique(np.column_stack([ballots.voter.astype(np.int64), ballots.prompt]), axis=0, return_inverse=True)
    votes = np.bincount(group.reshape(-1), ballots.lead)
    factors: Floats = np.minimum(1.0, limit / np.maximum(votes, 1.0))[group.reshape(-1)]
    return factors


def _cells(contests: Ballots) -> Cells:
    left, right = contests.left.astype(np.int64), contests.right.astype(np.int64)
    first, second = np.minimum(left, right), np.maximum(left, right)
    width = len(contests.adapters)
    kinds, contest = np.unique(first * width + second, return_inverse=True)
    both, cell = np.unique(contests.voter.astype(np.int64) * len(kinds) + contest, return_inverse=True)
    winner = np.where(contests.choice == A, left, right)
    won = winner == first
    number = max(len(kinds), 1)
    return Cells(
        voter=both // number,
        contest=both % number,
        first=kinds // max(width, 1),
        second=kinds % max(width, 1),
        wins=np.bincount(cell[won], minlength=len(both)).astype(np.int64),
        losses=np.bincount(cell[~won], minlength=len(both)).astype(np.int64),
    )
