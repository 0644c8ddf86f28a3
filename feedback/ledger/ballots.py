"""Pairs and votes in the ledger: each goes in with its outbox row, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import Connection, Insert, Table, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from feedback.contracts import PAIR_TOPIC, Choice, PairShown, Ranking, VoteCast
from feedback.leaks import names_itself
from feedback.ledger import outbox
from feedback.ledger.casting import VoteDraft, VoteOutcome, record_votes
from feedback.ledger.errors import NotYourConversation, PairConflict
from feedback.ledger.tables import conversations, from_us, pairs, to_us, votes


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """How much the ledger holds."""

    conversations: int
    pairs: int
    votes: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes of one kind between two adapters (None is the base) in these positions."""

    adapter_a: str | None
    adapter_b: str | None
    choice: Choice
    votes: int


def record_pair(connection: Connection, pair: PairShown) -> None:
    """Add a pair and its outbox row; the same pair again changes nothing.

    Raises:
        NotYourConversation, PairConflict: see feedback.ledger.errors.
    """
    value = pair.to_bytes()
    adapters = {completion.position: completion.adapter for completion in pair.completions}
    began = {"conversation_id": pair.conversation_id, "voter": pair.voter, "began_us": to_us(pair.shown_at)}
    if not insert_new(connection, conversations, began):
        require_conversation(connection, pair.conversation_id, pair.voter)
    new = insert_new(
        connection,
        pairs,
        {
            "pair_id": pair.pair_id,
            "conversation_id": pair.conversation_id,
            "voter": pair.voter,
            "adapter_a": adapters.get("a"),
            "adapter_b": adapters.get("b"),
            "adapter_c": adapters.get("c"),
            "adapter_d": adapters.get("d"),
            "answers": len(pair.completions),
            "blind": int(not any(names_itself(side.text, pair.base_model) for side in pair.completions)),
            "contenders": pair.contenders,
            "shown_us": to_us(pair.shown_at),
            "event": value,
        },
    )
    if new:
        outbox.enqueue(connection, event_id=pair.pair_id, topic=PAIR_TOPIC, key=pair.conversation_id)
    elif _pair_bytes(connection, pair.pair_id) != value:
        raise PairConflict(pair.pair_id)


def require_conversation(connection: Connection, conversation_id: str, voter: str) -> None:
    """Pass where the conversation is this voter's, or nobody's yet.

    Raises:
        NotYourConversation: another voter began it.
    """
    owner = connection.execute(
        select(conversations.c.voter).where(conversations.c.conversation_id == conversation_id)
    ).scalar_one_or_none()
    if owner is not None and owner != voter:
        raise NotYourConversation(conversation_id)


def pair(connection: Connection, pair_id: str) -> PairShown | None:
    """The pair, or None."""
    found = _pair_bytes(connection, pair_id)
    return None if found is None else PairShown.from_bytes(found)


def conversation(connection: Connection, conversation_id: str) -> list[PairShown]:
    """A conversation's pairs, the first shown first."""
    found = connection.execute(
        select(pairs.c.event)
        .where(pairs.c.conversation_id == conversation_id)
        .order_by(pairs.c.shown_us, pairs.c.pair_id)
    ).scalars()
    return [PairShown.from_bytes(event) for event in found]


def record_vote(
    connection: Connection,
    *,
    pair_id: str,
    voter: str,
    choice: Choice,
    ranking: Ranking | None = None,
    reasons: Sequence[str],
    comment: str | None,
    edited: str | None,
    dwell_ms: int | None,
) -> VoteOutcome:
    """Add a vote and its outbox row, or find the one that this voter cast before.

    Raises:
        UnknownPair, NotYourPair, UnfitVote, VoteConflict: see feedback.ledger.errors.
    """
    draft = VoteDraft(pair_id, voter, choice, tuple(reasons), comment, edited, dwell_ms, ranking)
    (outcome,) = record_votes(connection, [draft])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def vote(connection: Connection, pair_id: str, voter: str) -> VoteCast | None:
    """What this voter said of the pair, or None."""
    found = connection.execute(
        select(pairs.c.event, votes.c.event)
        .join_from(votes, pairs)
        .where(votes.c.pair_id == pair_id, votes.c.voter == voter)
    ).one_or_none()
    return None if found is None else outbox.vote_event(*found)


def vote_of_id(connection: Connection, vote_id: str) -> VoteCast | None:
    """The vote of this id, or None."""
    found = connection.execute(
        select(pairs.c.event, votes.c.event).join_from(votes, pairs).where(votes.c.vote_id == vote_id)
    ).one_or_none()
    return None if found is None else outbox.vote_event(*found)


def votes_after(
    connection: Connection, after: tuple[int, str], until: datetime | None, limit: int
) -> list[tuple[tuple[int, str], VoteCast]]:
    """The next votes after a place (time in microseconds, id) and before `until`, each with its own place."""
    cast_us, vote_id = after
    query = (
        select(votes.c.cast_us, votes.c.vote_id, pairs.c.event, votes.c.event)
        .join_from(votes, pairs)
        # The first term alone can use the index.
        .where(votes.c.cast_us >= cast_us, or_(votes.c.cast_us > cast_us, votes.c.vote_id > vote_id))
        .order_by(votes.c.cast_us, votes.c.vote_id)
        .limit(limit)
    )
    if until is not None:
        query = query.where(votes.c.cast_us < to_us(until))
    found = connection.execute(query)
    return [((at, found_id), outbox.vote_event(pair_half, vote_half)) for at, found_id, pair_half, vote_half in found]


def place_before_newest(connection: Connection, votes_kept: int) -> tuple[int, str]:
    """The place after which only so many votes are left, the newest; the very beginning where there are no more."""
    found = connection.execute(
        select(votes.c.cast_us, votes.c.vote_id)
        .order_by(votes.c.cast_us.desc(), votes.c.vote_id.desc())
        .offset(votes_kept)
        .limit(1)
    ).one_or_none()
    return (-1, "") if found is None else (found[0], found[1])


def votes_since(connection: Connection, moment: datetime) -> tuple[int, datetime | None]:
    """How many votes were cast since then, and when the first of them was."""
    count, first = connection.execute(
        select(func.count(), func.min(votes.c.cast_us)).where(votes.c.cast_us >= to_us(moment))
    ).one()
    return count, None if first is None else from_us(first)


def tallies(connection: Connection) -> list[Tally]:
    """Votes counted by adapters, positions and choice: all that win rates and position bias need."""
    found = connection.execute(
        select(pairs.c.adapter_a, pairs.c.adapter_b, votes.c.choice, func.count())
        .join_from(votes, pairs)
        .group_by(pairs.c.adapter_a, pairs.c.adapter_b, votes.c.choice)
        .order_by(pairs.c.adapter_a, pairs.c.adapter_b, votes.c.choice)
    )
    return [Tally(*row) for row in found]


def counts(connection: Connection) -> LedgerCounts:
    """How much there is."""
    return LedgerCounts(
        *(connection.execute(select(func.count()).select_from(t)).scalar_one() for t in (conversations, pairs, votes))
    )


def _pair_bytes(connection: Connection, pair_id: str) -> bytes | None:
    found = connection.execute(select(pairs.c.event).where(pairs.c.pair_id == pair_id)).scalar_one_or_none()
    return cast("bytes | None", found)


def insert_new(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert unless a unique constraint says that it is there already; True where it was inserted."""
    return connection.execute(_insert_new(connection.dialect.name, table), row).first() is not None


@cache
def _insert_new(dialect: str, table: Table) -> Insert:
    """The statement, made once: making one costs as much as running it."""
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    # Drivers disagree on the row count of such an insert; what it returns is plain.
    return insert.on_conflict_do_nothing().returning(*table.primary_key)
