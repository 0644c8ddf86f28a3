"""What a vote says of two answers at a time: a vote on a pair is one comparison, a ranking of K is K(K-1)/2 of them.

The comparisons of a ranking follow from each other: they are one person's one opinion, and whoever counts votes counts
them as one (`Comparison.among` says how many they are). Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, cast, get_args

from feedback.contracts import CompletionRecord, PairChoice, Position, Ranking, VoteCast

POSITIONS: tuple[Position, ...] = get_args(Position)
_ABOVE, _BESIDE = ">", "="


class Comparison(NamedTuple):
    """Two answers of a vote, `first` in the earlier position.

    Attributes:
        choice: what would have been said, had only these been shown: `a` for the first, `b` for the second.
        part: number of this comparison within its vote, from 0.
        among: how many comparisons the vote holds.
    """

    first: CompletionRecord
    second: CompletionRecord
    choice: PairChoice
    part: int
    among: int

    @property
    def decisive(self) -> bool:
        """Whether it names a winner."""
        return self.choice in {"a", "b"}


def comparisons(vote: VoteCast) -> tuple[Comparison, ...]:
    """Every two answers of a vote, in the order of their positions."""
    sides = sorted(vote.pair.completions, key=lambda side: side.position)
    if vote.choice in {"a", "b"}:
        return (Comparison(sides[0], sides[1], cast("PairChoice", vote.choice), 0, 1),)
    place = places(vote.ranking or ())
    twos = list(combinations(sides, 2))
    return tuple(
        Comparison(first, second, _said(vote, place, first.position, second.position), part, len(twos))
        for part, (first, second) in enumerate(twos)
    )


def places(ranking: Sequence[Sequence[Position]]) -> dict[Position, int]:
    """Where each position came; 0 is the best."""
    return {position: place for place, together in enumerate(ranking) for position in together}


def told(ranking: Ranking) -> str:
    """A ranking in one line: `b>a=c`."""
    return _ABOVE.join(_BESIDE.join(together) for together in ranking)


def read(line: str) -> Ranking:
    """The ranking that `told` gave."""
    return cast("Ranking", tuple(tuple(together.split(_BESIDE)) for together in line.split(_ABOVE)))


def _said(vote: VoteCast, place: dict[Position, int], first: Position, second: Position) -> PairChoice:
    if vote.choice != "ranking":
        return vote.choice
    if place[first] == place[second]:
        return "tie"
    return "a" if place[first] < place[second] else "b"
