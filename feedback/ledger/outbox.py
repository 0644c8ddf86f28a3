"""The outbox: events that were committed with what they tell of, on their way to the event log.

A row is `pending`, then `sent` (the broker has it), then `confirmed` (the curator's receipt came). A row that the
broker will never take is `parked`, with the reason. Topics without a curator end at `sent`, and can be told again when
a broker has forgotten them.

A row names its event; the event lies where the ledger keeps it anyway, and is read when it is sent (adr/0081). Only the
events of topics without a curator lie in the row itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from feedback.contracts import FORGOTTEN_TOPIC, PAIR_TOPIC, THUMB_TOPIC, VOTE_TOPIC, VoteCast, utc_now
from feedback.ledger import rows
from feedback.ledger.tables import forgotten, outbox, pairs, thumbs, to_us, votes

RECEIPTED_TOPICS = (PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC, FORGOTTEN_TOPIC)
"""Topics that the curator answers with receipts."""

LONGEST_WAIT_S = 3600.0
"""A receipt is never waited for longer than this."""

BATCH_BYTES = 8 * 1024 * 1024
"""Of the events that are read to be sent at once."""

_AT_ONCE = 50
"""Events that are read before their sizes are known."""

_CHUNK = 500
"""Ids in one statement."""

_REPLAYED = -1
"""`sends` of a row that a replay has made pending: the curator's receipt for an earlier sending is on the topic still,
and whoever reads that from its beginning must not take it for this one's."""

_ENQUEUE = insert(outbox)
_KEPT_COLUMNS = ("event_id", "topic", "record_key", "state", "created_us", "sends")
_BEFORE_VOTER = b',"voter":'


_KEPT = {
    PAIR_TOPIC: (pairs.c.event, pairs.c.pair_id),
    VOTE_TOPIC: (votes.c.event, votes.c.vote_id),
    THUMB_TOPIC: (thumbs.c.event, thumbs.c.thumb_id),
    FORGOTTEN_TOPIC: (forgotten.c.event, forgotten.c.event_id),
}
"""Where the events of each topic lie, and under which id; a vote's is its own half."""
_EVENT = func.coalesce(
    outbox.c.value,  # of a topic without a curator, or of an earlier version
    case(
        *(
            (outbox.c.topic == topic, select(event).where(key == outbox.c.event_id).scalar_subquery())
            for topic, (event, key) in _KEPT.items()
        )
    ),
)
_OTHER_HALF = case(
    (
        and_(outbox.c.topic == VOTE_TOPIC, outbox.c.value.is_(None)),
        select(pairs.c.event)
        .join(votes, votes.c.pair_id == pairs.c.pair_id)
        .where(votes.c.vote_id == outbox.c.event_id)
        .scalar_subquery(),
    )
)
"""The pair that a vote is on."""
_PENDING = (
    select(outbox.c.seq, outbox.c.event_id, outbox.c.topic, outbox.c.record_key, _EVENT, _OTHER_HALF)
    .where(outbox.c.state == "pending", outbox.c.seq > bindparam("after"))
    .order_by(outbox.c.seq)
    .limit(bindparam("wanted"))
)


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An event to send. Rows with one key go in the order of `seq`."""

    seq: int
    event_id: str
    topic: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """An event that the broker will not take, and why."""

    seq: int
    event_id: str
    topic: str
    error: str


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """How far the event log lags behind the ledger.

    Attributes:
        pending: rows to be sent.
        unconfirmed: rows sent whose receipt hasn't come.
        oldest_pending_age_s: how long the row that waits longest has waited to be sent; 0 where there is none.
        parked: rows that the broker refused for good.
    """

    pending: int
    unconfirmed: int
    oldest_pending_age_s: float
    parked: int


def enqueue(connection: Connection, *, event_id: str, topic: str, key: str, value: bytes | None = None) -> None:
    """Add a row; it is committed, or not, with the caller's transaction.

    Args:
        value: the event, where its topic is none of `RECEIPTED_TOPICS`: those events lie in tables of their own.
    """
    row = {"event_id": event_id, "topic": topic, "record_key": key, "value": value, "state": "pending", "sends": 0}
    connection.execute(_ENQUEUE, row | {"created_us": to_us(utc_now())})


def enqueue_kept(connection: Connection, told: Sequence[tuple[str, str, str]], now: datetime) -> None:
    """Add rows for events that lie in tables of their own, to be sent in this order: id, topic and key of each."""
    rows.insert(connection, outbox, _KEPT_COLUMNS, [(*each, "pending", to_us(now), 0) for each in told])


def pending(connection: Connection, limit: int, max_bytes: int = BATCH_BYTES) -> list[OutboxRow]:
    """The oldest rows to be sent: so many, or as many as together have so many bytes, but one in any case."""
    found: list[OutboxRow] = []
    room, after = max_bytes, -1
    while len(found) < limit:
        wanted = min(_AT_ONCE, limit - len(found))
        rows = connection.execute(_PENDING, {"after": after, "wanted": wanted}).all()
        for seq, event_id, topic, key, event, pair in rows:
            row = OutboxRow(seq, event_id, topic, key, event if pair is None else vote_bytes(pair, event))
            room -= len(row.value)
            if room < 0 and found:
                return found
            found.append(row)
        if len(rows) < wanted:
            return found
        after = rows[-1].seq
    return found


def mark_sent(connection: Connection, seqs: Iterable[int]) -> None:
    """The broker has these. A row whose receipt came first stays confirmed."""
    now = to_us(utc_now())
    lock = "" if connection.dialect.name == "sqlite" else " FOR UPDATE"  # as `_locked`
    for chunk in rows.chunks(sorted(seqs)):
        pending = f"seq IN ({rows.marks(connection, len(chunk))}) AND state = 'pending' ORDER BY seq{lock}"
        connection.exec_driver_sql(
            f"UPDATE outbox SET state = 'sent', sent_us = {now:d}, sends ="  # noqa: S608  numbers of our own
            f" CASE WHEN sends < 0 THEN 1 ELSE sends + 1 END"
            f" WHERE seq IN (SELECT seq FROM outbox WHERE {pending})",
            tuple(chunk),
        )


def mark_confirmed(connection: Connection, event_ids: Iterable[str]) -> int:
    """The curator has these; returns how many were news. Unknown ids are another ledger's and are passed over.

    A row that a replay has made pending waits for a receipt that comes after its sending.
    """
    still_to_go = and_(outbox.c.state == "pending", outbox.c.sends == _REPLAYED)
    open_rows = (outbox.c.state != "confirmed", outbox.c.topic.in_(RECEIPTED_TOPICS), not_(still_to_go))
    seqs: list[int] = []
    # A stranger's record may be named with NUL, which PostgreSQL can't even look for; its receipt names ours too.
    for ids in _chunks(event_id for event_id in event_ids if "\x00" not in event_id):
        seqs += connection.execute(select(outbox.c.seq).where(outbox.c.event_id.in_(ids), *open_rows)).scalars()
    news = 0
    for chunk in _chunks(sorted(seqs)):
        news += connection.execute(
            update(outbox)
            .where(_locked(outbox.c.seq.in_(chunk), *open_rows))
            .values(state="confirmed", value=None, error=None)
        ).rowcount
    return news


def remove(connection: Connection, event_ids: Select[Any]) -> int:
    """Take events out, whatever their state: nothing sends them again; returns how many."""
    return connection.execute(delete(outbox).where(outbox.c.event_id.in_(event_ids))).rowcount


def park(connection: Connection, seq: int, error: str) -> None:
    """The broker will never take this row: keep it, with the reason, and go on with the others."""
    connection.execute(update(outbox).where(outbox.c.seq == seq).values(state="parked", error=error))


def parked(connection: Connection, limit: int) -> list[ParkedRow]:
    """The oldest parked rows."""
    found = connection.execute(
        select(outbox.c.seq, outbox.c.event_id, outbox.c.topic, outbox.c.error)
        .where(outbox.c.state == "parked")
        .order_by(outbox.c.seq)
        .limit(limit)
    )
    return [ParkedRow(*row) for row in found]


def unpark(connection: Connection) -> int:
    """Send the parked rows after all (the broker's limit was raised); returns how many."""
    return connection.execute(
        update(outbox).where(outbox.c.state == "parked").values(_again(error=None, sends=0))
    ).rowcount


def requeue(connection: Connection, topics: Collection[str] | None, overdue_s: float | None) -> int:
    """Make sent rows pending again; returns how many.

    Args:
        topics: these have lost what they held: all their unconfirmed rows go again, and start to count anew.
        overdue_s: rows whose receipt is overdue go again: after this time, doubled with each sending, up to an hour.
    """
    again = 0
    if topics:
        again += connection.execute(
            update(outbox).where(_locked(outbox.c.state == "sent", outbox.c.topic.in_(topics))).values(_again(sends=0))
        ).rowcount
    if overdue_s is not None:
        again += connection.execute(
            update(outbox)
            .where(_locked(outbox.c.state == "sent", outbox.c.topic.in_(RECEIPTED_TOPICS), _overdue(overdue_s)))
            .values(_again())
        ).rowcount
    return again


def replay(connection: Connection, topics: Collection[str], after: int, last: int, limit: int) -> tuple[int, int]:
    """Make the next rows of these topics pending again, confirmed ones too: each is sent, whatever receipts come first.

    Returns:
        How many rows, and the `after` of the next call; `last` when there are no more.
    """
    found = connection.execute(
        select(outbox.c.seq)
        .where(
            outbox.c.seq > after,
            outbox.c.seq <= last,
            outbox.c.topic.in_(topics),
            outbox.c.state.in_(("sent", "confirmed")),
        )
        .order_by(outbox.c.seq)
        .limit(limit)
        .with_for_update()
    )
    seqs = list(found.scalars())
    connection.execute(update(outbox).where(outbox.c.seq.in_(seqs)).values(_again(sends=_REPLAYED)))
    return len(seqs), seqs[-1] if len(seqs) == limit else last


def last_seq(connection: Connection) -> int:
    """The newest row's number; 0 where there is none."""
    newest: int = connection.execute(select(func.coalesce(func.max(outbox.c.seq), 0))).scalar_one()
    return newest


def stats(connection: Connection) -> OutboxStats:
    """How far the event log lags behind."""
    pending_rows, oldest = connection.execute(
        select(func.count(), func.min(outbox.c.created_us)).where(outbox.c.state == "pending")
    ).one()
    unconfirmed = connection.execute(
        select(func.count()).where(outbox.c.state == "sent", outbox.c.topic.in_(RECEIPTED_TOPICS))
    ).scalar_one()
    parked_rows = connection.execute(select(func.count()).where(outbox.c.state == "parked")).scalar_one()
    age = 0.0 if oldest is None else max(0.0, (to_us(utc_now()) - oldest) / 1e6)
    return OutboxStats(pending_rows, unconfirmed, age, parked_rows)


def vote_bytes(pair: bytes, vote: bytes) -> bytes:
    """A vote's bytes on the wire out of the two halves that the ledger keeps: `pair` stands before `voter`.

    They are the same bytes at each sending, whatever version wrote the halves.

    Quotation marks inside a JSON string are escaped, so that the first match is the key.
    """
    return vote.replace(_BEFORE_VOTER, b',"pair":' + pair + _BEFORE_VOTER, 1)


def vote_event(pair: bytes, vote: bytes) -> VoteCast:
    """The whole event out of the same halves."""
    return VoteCast.model_validate_json(vote_bytes(pair, vote))


def _again(**values: Any) -> dict[str, Any]:
    """To be sent again. It waits from now on: the event log was not out of reach since it was recorded."""
    return {"state": "pending", "created_us": to_us(utc_now()), **values}


def _locked(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """These rows, locked in the order of `seq`: the relays of two servings change the same rows and never deadlock.

    SQLite has one writer and locks no rows.
    """
    return outbox.c.seq.in_(select(outbox.c.seq).where(*conditions).order_by(outbox.c.seq).with_for_update())


def _overdue(first_wait_s: float) -> ColumnElement[bool]:
    now = to_us(utc_now())
    waits = [first_wait_s]
    while waits[-1] < LONGEST_WAIT_S:
        waits.append(min(waits[-1] * 2, LONGEST_WAIT_S))
    steps = [
        and_(outbox.c.sends == sends, outbox.c.sent_us <= now - round(wait * 1e6))
        for sends, wait in enumerate(waits[:-1], start=1)
    ]
    last = and_(outbox.c.sends >= len(waits), outbox.c.sent_us <= now - round(waits[-1] * 1e6))
    # A clock that was set back: nothing can have been sent later than now.
    ahead = outbox.c.sent_us > now + round(first_wait_s * 1e6)
    return or_(*steps, last, ahead)


def _chunks(items: Iterable[Any]) -> Iterator[Sequence[Any]]:
    left = iter(items)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk
