"""One adapter against another in the ledger: what both spoke in, and the votes on it.

A vote on a pair says one thing of the two. A ranking of three or four answers says it several times over, for each may
have spoken more than once; still it is one voter's one vote, and counts as the mean of what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from operator import attrgetter
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, or_, select, text, union_all

from feedback.comparisons import POSITIONS, places, read
from feedback.contracts import GOLD_RULE, REVIEW_RULE, PairShown
from feedback.ledger.tables import from_us, pairs, to_us, votes

Outcome = Literal["win", "loss", "tie", "both_bad"]
SCORES: dict[Outcome, float] = {"win": 1.0, "loss": 0.0, "tie": 0.5, "both_bad": 0.5}
_MORE = pairs.c.answers > text("2")  # not bound: the index is of just these words
_ADAPTERS = (pairs.c.adapter_a, pairs.c.adapter_b, pairs.c.adapter_c, pairs.c.adapter_d)


@dataclass(frozen=True, slots=True)
class Duel:
    """A vote between two adapters, as the first of them sees it.

    Attributes:
        left: it named the left answer (of a ranking: a came before b), or the other; None where neither.
        points: share of the comparisons between the two that the first won, in a ranking; None in a vote on a pair.
    """

    voter: str
    outcome: Outcome
    left: bool | None
    cast_at: datetime
    points: float | None = None

    @property
    def score(self) -> float:
        """1 for the first, 0 for the other, a half for neither."""
        return SCORES[self.outcome] if self.points is None else self.points


def duels(connection: Connection, one: str | None, other: str | None, since: datetime) -> list[Duel]:
    """Votes on what these two answered and was shown since then, the earliest first (None is the base).

    Planted pairs aren't among them, where nobody's own answers are compared, nor prepared ones, whose questions people
    didn't ask, nor those in which an answer told who gives it.
    """
    columns = (votes.c.choice, votes.c.ranking, votes.c.voter, votes.c.cast_us, pairs.c.answers)
    found: list[Any] = []
    # Two queries, each with an index of its own; ordered here, for an ORDER BY makes SQLite read all votes instead.
    for met in (_pair(one, other), _among_more(one, other)):
        query = (
            select(*columns, votes.c.vote_id, *_ADAPTERS)
            .join_from(pairs, votes)
            .where(met, pairs.c.shown_us >= to_us(since), pairs.c.blind == 1)
            .where(pairs.c.contenders.not_in((GOLD_RULE, REVIEW_RULE)))
        )
        found += connection.execute(query).all()
    found.sort(key=attrgetter("cast_us", "vote_id"))
    seen = (
        _duel(choice, ranking, voter, from_us(cast_us), spoke[:answers], one, other)
        for choice, ranking, voter, cast_us, answers, _, *spoke in found
    )
    return [duel for duel in seen if duel is not None]


def pairs_of(
    connection: Connection, one: str | None, other: str | None, since: datetime, limit: int
) -> list[PairShown]:
    """The first pairs, or more answers, of these two that were shown since then."""
    parts = [
        select(pairs.c.event, pairs.c.shown_us, pairs.c.pair_id).where(met, pairs.c.shown_us >= to_us(since))
        for met in (_pair(one, other), _among_more(one, other))
    ]
    both = union_all(*parts).subquery()
    found = connection.execute(select(both.c.event).order_by(both.c.shown_us, both.c.pair_id).limit(limit)).scalars()
    return [PairShown.from_bytes(event) for event in found]


def _pair(one: str | None, other: str | None) -> ColumnElement[bool]:
    """A pair of these two. `== None` is IS NULL to SQLAlchemy, which an index serves."""

    def are(left: str | None, right: str | None) -> ColumnElement[bool]:
        return and_(pairs.c.adapter_a == left, pairs.c.adapter_b == right)

    return and_(pairs.c.answers == 2, or_(are(one, other), are(other, one)))


def _among_more(one: str | None, other: str | None) -> ColumnElement[bool]:
    """Three or four answers, of which both gave some."""

    def speaks(adapter: str | None) -> ColumnElement[bool]:
        spoken = [column == adapter for column in _ADAPTERS[:3]]
        return or_(*spoken, and_(pairs.c.answers == 4, pairs.c.adapter_d == adapter))

    return and_(_MORE, speaks(one), speaks(other))


def _duel(  # noqa: PLR0917  the columns of a row, and who asks
    choice: str,
    ranking: str | None,
    voter: str,
    cast_at: datetime,
    spoke: Sequence[str | None],
    one: str | None,
    other: str | None,
) -> Duel | None:
    """The row as a duel; None where one adapter's own answers were asked for and others spoke too."""
    if one == other and any(adapter != one for adapter in spoke):
        return None
    outcome: Outcome
    if choice in {"tie", "both_bad"}:
        return Duel(voter, cast("Outcome", choice), None, cast_at)
    if ranking is None:
        outcome = "win" if (choice == "a") == (spoke[0] == one) else "loss"
        return Duel(voter, outcome, choice == "a", cast_at)
    place = places(read(ranking))
    points = _points([place[position] for position in POSITIONS[: len(spoke)]], spoke, one, other)
    outcome = "tie" if points == 0.5 else "win" if points > 0.5 else "loss"
    left = None if place["a"] == place["b"] else place["a"] < place["b"]
    return Duel(voter, outcome, left, cast_at, points)


def _points(place: Sequence[int], spoke: Sequence[str | None], one: str | None, other: str | None) -> float:
    """Mean over every two answers of which `one` gave the first and `other` the second, either way round."""
    scores = []
    for first, second in combinations(range(len(spoke)), 2):
        if {spoke[first], spoke[second]} != {one, other}:
            continue
        ahead = 0.5 * (1 + (place[first] < place[second]) - (place[first] > place[second]))
        scores.append(ahead if spoke[first] == one else 1 - ahead)
    return sum(scores) / len(scores)
