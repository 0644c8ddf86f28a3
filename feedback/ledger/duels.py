"""One adapter against another in the ledger: the pairs that both spoke in, and the votes on them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from feedback.contracts import PairShown
from feedback.ledger.tables import from_us, pairs, to_us, votes

Outcome = Literal["win", "loss", "tie", "both_bad"]


@dataclass(frozen=True, slots=True)
class Duel:
    """A vote between two adapters, as the first of them sees it. `left`: it named the left answer."""

    voter: str
    outcome: Outcome
    left: bool
    cast_at: datetime


def duels(connection: Connection, one: str | None, other: str | None, since: datetime) -> list[Duel]:
    """Votes on pairs of these two that were shown since then, the earliest first (None is the base)."""
    found = connection.execute(
        select(votes.c.voter, votes.c.choice, votes.c.cast_us, pairs.c.adapter_a)
        .join_from(votes, pairs)
        .where(_of(one, other), pairs.c.shown_us >= to_us(since))
        .order_by(votes.c.cast_us, votes.c.vote_id)
    )
    return [
        Duel(voter, _outcome(choice, left_is_one=left == one), choice == "a", from_us(cast_us))
        for voter, choice, cast_us, left in found
    ]


def pairs_of(
    connection: Connection, one: str | None, other: str | None, since: datetime, limit: int
) -> list[PairShown]:
    """The first pairs of these two that were shown since then."""
    found = connection.execute(
        select(pairs.c.event)
        .where(_of(one, other), pairs.c.shown_us >= to_us(since))
        .order_by(pairs.c.shown_us, pairs.c.pair_id)
        .limit(limit)
    ).scalars()
    return [PairShown.from_bytes(event) for event in found]


def _of(one: str | None, other: str | None) -> ColumnElement[bool]:
    def are(left: str | None, right: str | None) -> ColumnElement[bool]:
        # `== None` is IS NULL to SQLAlchemy, which an index serves.
        return and_(pairs.c.adapter_a == left, pairs.c.adapter_b == right)

    return or_(are(one, other), are(other, one))


def _outcome(choice: str, *, left_is_one: bool) -> Outcome:
    if choice == "tie":
        return "tie"
    if choice == "both_bad":
        return "both_bad"
    return "win" if (choice == "a") == left_is_one else "loss"
