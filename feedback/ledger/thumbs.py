"""Single answers and the thumbs given to them (chat mode), beside pairs and votes; see `ballots`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Connection, func, select

from feedback.contracts import THUMB_TOPIC, AnswerShown, Thumb, ThumbGiven
from feedback.ledger import ballots, outbox
from feedback.ledger.errors import NotYourPair, UnknownPair, VoteConflict
from feedback.ledger.tables import answers, conversations, thumbs, to_us


@dataclass(frozen=True, slots=True)
class ThumbOutcome:
    """What became of a thumb. `created` is False where the voter had given just this one before."""

    event: ThumbGiven
    created: bool


@dataclass(frozen=True, slots=True)
class ThumbCounts:
    """Single answers shown, and how they were liked."""

    answers: int
    up: int
    down: int


def record_answer(connection: Connection, answer: AnswerShown) -> None:
    """Add a single answer. It stays in the ledger: only a thumb tells the event log of it.

    Raises:
        NotYourConversation: see feedback.ledger.errors.
    """
    began = {
        "conversation_id": answer.conversation_id,
        "voter": answer.voter,
        "began_us": to_us(answer.shown_at),
    }
    if not ballots.insert_new(connection, conversations, began):
        ballots.require_conversation(connection, answer.conversation_id, answer.voter)
    row = {
        "answer_id": answer.answer_id,
        "conversation_id": answer.conversation_id,
        "voter": answer.voter,
        "adapter": answer.completion.adapter,
        "shown_us": to_us(answer.shown_at),
        "event": answer.to_bytes(),
    }
    ballots.insert_new(connection, answers, row)


def record_thumb(
    connection: Connection,
    *,
    answer_id: str,
    voter: str,
    thumb: Thumb,
    reasons: Sequence[str],
    comment: str | None,
) -> ThumbOutcome:
    """Add a thumb and its outbox row, or find the one that this voter gave before.

    Raises:
        UnknownPair, NotYourPair, VoteConflict: as of a vote.
    """
    shown = connection.execute(select(answers.c.event).where(answers.c.answer_id == answer_id)).scalar_one_or_none()
    if shown is None:
        raise UnknownPair(answer_id, "answer")
    answer = AnswerShown.from_bytes(shown)
    if answer.voter != voter:
        raise NotYourPair(answer_id, "answer")
    event = ThumbGiven(
        thumb_id=f"thumb_{uuid4().hex}",
        answer=answer,
        voter=voter,
        thumb=thumb,
        reasons=tuple(reasons),
        comment=comment,
    )
    value = event.to_bytes()
    row = {
        "thumb_id": event.thumb_id,
        "answer_id": answer_id,
        "voter": voter,
        "thumb": thumb,
        "given_us": to_us(event.given_at),
        "event": value,
    }
    if ballots.insert_new(connection, thumbs, row):
        outbox.enqueue(connection, event_id=event.thumb_id, topic=THUMB_TOPIC, key=answer.conversation_id)
        return ThumbOutcome(event, created=True)
    mine = select(thumbs.c.event).where(thumbs.c.answer_id == answer_id, thumbs.c.voter == voter)
    earlier = ThumbGiven.from_bytes(connection.execute(mine).scalar_one())
    if earlier.thumb != thumb:
        raise VoteConflict(answer_id, earlier.thumb_id, earlier.thumb, "answer")
    return ThumbOutcome(earlier, created=False)


def counts(connection: Connection) -> ThumbCounts:
    """How many there are."""
    shown = connection.execute(select(func.count()).select_from(answers)).scalar_one()
    found = connection.execute(select(thumbs.c.thumb, func.count()).group_by(thumbs.c.thumb))
    by_thumb: dict[str, int] = {row[0]: row[1] for row in found}
    return ThumbCounts(shown, by_thumb.get("up", 0), by_thumb.get("down", 0))
