"""Standings from the ballots: win rates, strengths with intervals, position bias, length. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feedback.ledger import Tally
from feedback.voters import Ballots
from feedback.voters.ballots import BOTH_BAD, NO_GOLD, TIE, A, B
from serve import davidson
from serve.davidson import Contests, Strengths

Floats = NDArray[np.float64]
Interval = tuple[float, float]
DRAWS = 500
_Z95 = 1.959964
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """One contender.

    Attributes:
        rank: 1 plus the number of contenders whose interval lies wholly above this one's, at equal length.
        wins, losses, ties, both_bad: comparisons with another contender, each counted as one; a vote on a pair is one,
            a ranking one for every two of its answers.
        win_rate: share of the weight that it took; a tie gives half. None where no vote has weight.
        strength: log-odds of beating an average contender; the position's bias is taken out.
        interval: 95%, by drawing voters.
        controlled, controlled_interval: the same with the answers' length taken out.
    """

    contender: str
    rank: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    win_rate: float | None
    strength: float
    interval: Interval
    controlled: float
    controlled_interval: Interval

    @property
    def votes(self) -> int:
        """Comparisons with another contender."""
        return self.wins + self.losses + self.ties + self.both_bad


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """All standings, the strongest at equal length first, and what was found on the way.

    Attributes:
        votes: votes that the standings rest on; `comparisons` is how many they are, with rankings taken apart.
        voters: people who cast them.
        planted, leaking: votes left out: on planted pairs, and on answers that gave away who they are.
        position_bias, length_effect: log-odds for the left answer, and for an answer over an empty one; with intervals.
    """

    contenders: tuple[Standing, ...]
    votes: int
    voters: int
    planted: int
    leaking: int
    comparisons: int = 0
    position_bias: float | None = None
    position_bias_interval: Interval | None = None
    length_effect: float | None = None
    length_effect_interval: Interval | None = None


def leaderboard(ballots: Ballots, weights: Floats, draws: int = DRAWS) -> Leaderboard:
    """Everybody who has met somebody else.

    Args:
        weights: (N,) what each vote counts; a ranking counts once, its rows share that.
        draws: bootstrap draws of the intervals.
    """
    fair = ballots.fair
    planted = int(((ballots.gold != NO_GOLD) & ballots.lead).sum())
    leaking = int((ballots.contest & ballots.leak & ballots.lead).sum())
    vote = np.cumsum(ballots.lead)[fair]
    told, counted = ballots.only(fair), weights[fair] / np.maximum(np.bincount(vote), 1)[vote]
    voters = len(np.unique(told.voter))
    if not len(told):
        return Leaderboard((), 0, 0, planted, leaking)
    known, contests = _contests(told, counted)
    names = [told.adapters[number] for number in known]
    plain = davidson.fit(contests, control_length=False, draws=draws)
    equal = davidson.fit(contests, control_length=True, draws=draws)
    size = len(names)
    low, high = equal.intervals()
    return Leaderboard(
        _standings(names, contests, told, plain, equal),
        votes=len(np.unique(vote)),
        comparisons=len(told),
        voters=voters,
        planted=planted,
        leaking=leaking,
        position_bias=round(equal.bias, _DIGITS),
        position_bias_interval=_interval(low[size + 1], high[size + 1]),
        length_effect=round(equal.lengthen, _DIGITS),
        length_effect_interval=_interval(low[size + 2], high[size + 2]),
    )


def left_share(tallies: Sequence[Tally]) -> float | None:
    """Share of decisive votes for the left answer; far from a half is position bias. None without such votes."""
    left, right = _sides(tallies)
    return left / (left + right) if left + right else None


def left_interval(tallies: Sequence[Tally]) -> Interval | None:
    """95% interval of the share of the left, as if every vote were another person's; None without such votes."""
    left, right = _sides(tallies)
    return wilson(left, left + right) if left + right else None


def left_of(ballots: Ballots) -> tuple[float, float, float] | None:
    """Share of the left among the decisive votes on pairs that nobody planted, and its 95% interval.

    Of a ranking counts whether a came before b: one vote, one look at the sides.
    """
    chosen = ballots.choice[(ballots.gold == NO_GOLD) & ballots.lead]
    left, right = int((chosen == A).sum()), int((chosen == B).sum())
    return (left / (left + right), *wilson(left, left + right)) if left + right else None


def wilson(hits: int, total: int) -> Interval:
    """95% score interval of a share (Wilson, 1927)."""
    share, z = hits / total, _Z95
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return _interval(middle - half, middle + half)


def choices(tallies: Iterable[Tally]) -> dict[str, int]:
    """Votes by choice."""
    counted = {"a": 0, "b": 0, "tie": 0, "both_bad": 0, "ranking": 0}
    for tally in tallies:
        counted[tally.choice] += tally.votes
    return counted


def _sides(tallies: Iterable[Tally]) -> tuple[int, int]:
    counted = choices(tallies)
    return counted["a"], counted["b"]


def _contests(told: Ballots, weights: Floats) -> tuple[NDArray[np.int32], Contests]:
    """The votes among contenders numbered from 0 (the first array says which adapters these are)."""
    known, number = np.unique(np.concatenate([told.left, told.right]), return_inverse=True)
    spoke = number.astype(np.int32)
    total = np.maximum(told.length_a + told.length_b, 1)
    return known, Contests(
        left=spoke[: len(told)],
        right=spoke[len(told) :],
        choice=np.minimum(told.choice, TIE).astype(np.int8),
        longer=(told.length_a - told.length_b) / total,
        weight=weights,
        voter=told.voter,
        contenders=len(known),
    )


def _standings(
    names: Sequence[str], contests: Contests, told: Ballots, plain: Strengths, equal: Strengths
) -> tuple[Standing, ...]:
    (low, high), (low_equal, high_equal) = plain.intervals(), equal.intervals()
    size = len(names)
    records, rates = _records(contests, told), _win_rates(contests)
    rows = [
        Standing(
            contender=name,
            rank=1 + int((low_equal[:size] > high_equal[index]).sum()),
            **{outcome: int(counts[index]) for outcome, counts in records.items()},
            win_rate=rates[index],
            strength=round(float(plain.strength[index]), _DIGITS),
            interval=_interval(low[index], high[index]),
            controlled=round(float(equal.strength[index]), _DIGITS),
            controlled_interval=_interval(low_equal[index], high_equal[index]),
        )
        for index, name in enumerate(names)
    ]
    return tuple(sorted(rows, key=lambda row: (-row.controlled, row.contender)))


def _records(contests: Contests, told: Ballots) -> dict[str, NDArray[np.int64]]:
    """(K,) comparisons of each contender, by how they ended for it."""
    left, right = [_counted(side, told.choice, contests.contenders) for side in (contests.left, contests.right)]
    both = left + right
    return {
        "wins": left[:, A] + right[:, B],
        "losses": left[:, B] + right[:, A],
        "ties": both[:, TIE],
        "both_bad": both[:, BOTH_BAD],
    }


def _counted(side: NDArray[np.int32], choice: NDArray[np.int8], contenders: int) -> NDArray[np.int64]:
    """(K, 4) how often the contender at this side heard each choice."""
    place = side.astype(np.int64) * 4 + choice
    return np.bincount(place, minlength=contenders * 4).reshape(contenders, 4)


def _win_rates(contests: Contests) -> list[float | None]:
    """Share of the weight that each contender took; None where no vote has weight."""
    points, size = np.array([1.0, 0.0, 0.5])[contests.choice], contests.contenders
    took, total = np.zeros(size), np.zeros(size)
    for side, share in ((contests.left, points), (contests.right, 1 - points)):
        took += np.bincount(side, contests.weight * share, minlength=size)
        total += np.bincount(side, contests.weight, minlength=size)
    return [round(float(mine / all_), _DIGITS) if all_ else None for mine, all_ in zip(took, total, strict=True)]


def _interval(low: float, high: float) -> Interval:
    return round(float(low), _DIGITS), round(float(high), _DIGITS)
