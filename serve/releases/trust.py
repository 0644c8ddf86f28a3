"""What a ballot weighs: its voter's trust, fixed before the ballot closed and blind to the contest that it is cast in.

A voter's reliability is worked out from all their votes (`feedback.voters`). To weigh an election by weights that have
seen its own votes would break its promise: whoever votes unlike the rest would lose weight for just that. So trust is
read off other contests, off pairs of one adapter with itself and off planted pairs, as they were at the last turn of
the clock before the ballot closed. With no true difference such a weight tells nothing of how the ballot turns out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

Trust = Callable[[datetime, str, str | None], Mapping[str, float]]
"""How far each voter is trusted, 0 to 1, by votes cast before a time in all contests but the one between these two."""
KEPT_TURNS = 16
KEPT_WEIGHTS = 200_000


class Scales:
    """Weighs ballots. What it has said of a ballot it says again, until it forgets; then it works out the same.

    Args:
        trust: who is missing in what it tells is trusted whole.
        turn: trust is worked out anew after each, counted from the contest's begin; not once a ballot, for it takes
            a second with many votes.
    """

    def __init__(self, trust: Trust, turn: timedelta) -> None:
        self._trust = trust
        self._turn = turn
        self._turns: dict[tuple[str, str | None, datetime], Mapping[str, float]] = {}
        self._weights: dict[tuple[str, str | None, str, datetime], float] = {}

    def weigh(self, one: str, other: str | None, since: datetime, voter: str, closed: datetime) -> float:
        """What a voter's ballot between these two weighs, that closed then; `since` is the contest's begin."""
        key = (one, other, voter, closed)
        if key not in self._weights:
            if len(self._weights) >= KEPT_WEIGHTS:
                self._weights.clear()
            before = since + (closed - since) // self._turn * self._turn
            self._weights[key] = self._at(one, other, before).get(voter, 1.0)
        return self._weights[key]

    def _at(self, one: str, other: str | None, before: datetime) -> Mapping[str, float]:
        key = (one, other, before)
        if key not in self._turns:
            while len(self._turns) >= KEPT_TURNS:
                del self._turns[next(iter(self._turns))]
            self._turns[key] = self._trust(before, one, other)
        return self._turns[key]
