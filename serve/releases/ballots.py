"""From votes to independent observations: one ballot a voter, so that nobody's many votes outweigh other people's.

Voters differ in taste. Fifty votes of one voter tell much about that voter and little about the next, so a test that
took them for fifty strangers' would be wrong far more often than it says. A ballot is the mean score of a voter's first
few votes; it closes when it is full, or when the voter has been away for a while, and counts once, closed. What comes
after changes nothing. When it closes doesn't depend on what was voted, and voters don't know which answer is whose, so
with no true difference its mean is a half, whatever the position bias: left and right are drawn at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from feedback.ledger import Duel
from serve.releases.sequential import Value

Weigh = Callable[[str, datetime], float]
"""What a voter's ballot weighs, 0 to 1, that closed at this time; it must not depend on what was voted."""


@dataclass(frozen=True, slots=True)
class Count:
    """Votes of one contender against another, and the ballots made of them.

    Attributes:
        outcomes: votes by outcome, all of them.
        voters: people who voted.
        ballots: how many closed ballots have each score (and weight, where that isn't 1); those of no weight left out.
        left, right: votes that named the left answer, and the other.
    """

    outcomes: Counter[str]
    voters: int
    ballots: Counter[Value]
    left: int
    right: int

    @property
    def votes(self) -> int:
        """All votes."""
        return self.outcomes.total()

    @property
    def left_share(self) -> float | None:
        """Share of the decisive votes for the left answer; far from a half is position bias. None without such."""
        named = self.left + self.right
        return self.left / named if named else None


def count(
    duels: Iterable[Duel],
    *,
    now: datetime,
    size: int,
    idle: timedelta,
    by_voter: bool = True,
    weigh: Weigh = lambda voter, closed: 1.0,
) -> Count:
    """Count votes, the earliest first.

    Args:
        size: votes of a full ballot.
        idle: time after its last vote at which a ballot that isn't full closes.
        weigh: tells what a ballot weighs.
        by_voter: False makes each vote a full ballot of its own, as if each came from somebody else.
    """
    outcomes: Counter[str] = Counter()
    ballots: dict[tuple[str, int], list[Duel]] = {}
    named = Counter[bool]()
    for number, duel in enumerate(duels):
        outcomes[duel.outcome] += 1
        if duel.left is not None:
            named[duel.left] += 1
        mine = ballots.setdefault((duel.voter, 0 if by_voter else number), [])
        if not _closed(mine, duel.cast_at, size, idle):
            mine.append(duel)
    full = size if by_voter else 1
    closed = [mine for mine in ballots.values() if _closed(mine, now, full, idle)]
    scores: Counter[Value] = Counter()
    for mine in closed:
        score = sum(duel.score for duel in mine) / len(mine)
        weight = weigh(mine[0].voter, mine[-1].cast_at + (idle if len(mine) < full else timedelta()))
        if weight > 0:
            scores[score if weight == 1.0 else (score, weight)] += 1
    return Count(outcomes, len({voter for voter, _ in ballots}), scores, named[True], named[False])


def _closed(mine: list[Duel], now: datetime, size: int, idle: timedelta) -> bool:
    return bool(mine) and (len(mine) >= size or now - mine[-1].cast_at >= idle)
