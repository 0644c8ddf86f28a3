"""Forgetting a voter: their rows go, a tombstone comes, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Connection, delete, func, insert, or_, select

from feedback.contracts import FORGOTTEN_TOPIC, VoterForgotten, utc_now
from feedback.ledger import outbox
from feedback.ledger.tables import answers, conversations, forgotten, from_us, pairs, thumbs, to_us, votes


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went from the ledger, and the tombstone that tells of it.

    Attributes:
        rows: how many rows went, answers and thumbs among them.
    """

    event: VoterForgotten
    conversations: int
    pairs: int
    votes: int
    rows: int


def forget(connection: Connection, voter: str) -> Forgotten:
    """Delete a voter's conversations, answers, pairs, votes, thumbs and outbox rows; enqueue the tombstone."""
    mine = select(pairs.c.pair_id).where(pairs.c.voter == voter)
    cast = or_(votes.c.voter == voter, votes.c.pair_id.in_(mine))
    event = VoterForgotten(event_id=f"forgotten_{uuid4().hex}", voter=voter, until=from_us(_latest(connection, voter)))
    liked = thumbs.c.voter == voter
    outbox.remove(connection, select(thumbs.c.thumb_id).where(liked))
    gone_thumbs = connection.execute(delete(thumbs).where(liked)).rowcount
    gone_answers = connection.execute(delete(answers).where(answers.c.voter == voter)).rowcount
    outbox.remove(connection, select(votes.c.vote_id).where(cast))
    outbox.remove(connection, mine)
    gone_votes = connection.execute(delete(votes).where(cast)).rowcount
    gone_pairs = connection.execute(delete(pairs).where(pairs.c.voter == voter)).rowcount
    gone_talks = connection.execute(delete(conversations).where(conversations.c.voter == voter)).rowcount
    value = event.to_bytes()
    connection.execute(
        insert(forgotten).values(event_id=event.event_id, voter=voter, until_us=to_us(event.until), event=value)
    )
    outbox.enqueue(connection, event_id=event.event_id, topic=FORGOTTEN_TOPIC, key=voter)
    rows = gone_talks + gone_pairs + gone_votes + gone_thumbs + gone_answers
    return Forgotten(event, gone_talks, gone_pairs, gone_votes, rows)


def tombstones(connection: Connection) -> list[VoterForgotten]:
    """Every voter forgotten, the first first."""
    found = connection.execute(select(forgotten.c.event).order_by(forgotten.c.until_us, forgotten.c.event_id)).scalars()
    return [VoterForgotten.from_bytes(event) for event in found]


def _latest(connection: Connection, voter: str) -> int:
    """Now, or the time of the voter's last event where that is later: clocks jump, and servings have several."""
    cast = connection.execute(select(func.max(votes.c.cast_us)).where(votes.c.voter == voter)).scalar_one()
    shown = connection.execute(select(func.max(pairs.c.shown_us)).where(pairs.c.voter == voter)).scalar_one()
    given = connection.execute(select(func.max(thumbs.c.given_us)).where(thumbs.c.voter == voter)).scalar_one()
    latest: int = max(to_us(utc_now()), cast or 0, shown or 0, given or 0)
    return latest
