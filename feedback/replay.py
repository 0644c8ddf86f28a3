"""Rebuilding what was lost: topics from the ledger, topics from the dataset's parts, snapshots from topics.

Nothing here can double anything: every event goes out in the bytes that it first had, and the curator drops by id what
the dataset holds. So a replay changes no snapshot, and a dataset made anew from a replay has the same snapshots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from feedback.contracts import FORGOTTEN_TOPIC, PAIR_TOPIC, RELEASE_TOPIC, THUMB_TOPIC, VOTE_TOPIC
from feedback.dataset import Dataset
from feedback.event_log import EventLog, EventLogError, EventProducer, OutgoingRecord, RecordTooLarge

if TYPE_CHECKING:
    from feedback.ledger import Ledger

LEDGER_TOPICS = (PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC, RELEASE_TOPIC, FORGOTTEN_TOPIC)
"""What the ledger has the record of."""
BATCH = 200


class ReplayError(Exception):
    """The replay can't be done as asked; the message says what to do."""


def replay_ledger(ledger: Ledger, log: EventLog, topics: Collection[str] = LEDGER_TOPICS) -> Mapping[str, int]:
    """Send the ledger's whole record of `topics` again, and whatever else is pending; returns events sent, by topic.

    Parked events are tried again too: the broker's limit may have been raised. It sends by itself, so no serving is
    needed; where serving runs, its relay takes part, and nothing is lost by that.

    Raises:
        ReplayError: the ledger doesn't hold a topic.
        EventLogUnavailable: the broker is away; what is left stays pending, and the relay or another replay sends it.
    """
    unknown = sorted(set(topics) - set(LEDGER_TOPICS))
    if unknown:
        raise ReplayError(f"the ledger has no record of {unknown[0]}; it holds {', '.join(LEDGER_TOPICS)}")
    log.ensure_topics(LEDGER_TOPICS)
    ledger.replay(topics)
    ledger.unpark()
    sent: Counter[str] = Counter()
    with closing(log.producer()) as producer:
        while rows := ledger.pending(BATCH):
            records = [OutgoingRecord(row.topic, row.key, row.value, row.event_id) for row in rows]
            errors = producer.send(records)
            taken = [row for row, error in zip(rows, errors, strict=True) if error is None]
            ledger.mark_sent([row.seq for row in taken])
            sent.update(row.topic for row in taken)
            for row, error in zip(rows, errors, strict=True):
                if isinstance(error, RecordTooLarge):
                    ledger.park(row.seq, str(error))
                elif error is not None:
                    raise error
    return dict(sent)


def replay_dataset(dataset: Dataset, log: EventLog) -> Mapping[str, int]:
    """Send every pair, vote and thumb of the dataset's parts again: for a new reader where the ledger is gone.

    Raises:
        EventLogError: the broker is away, or refuses a record; begin again when that is mended.
    """
    log.ensure_topics((PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC))
    pairs = (
        OutgoingRecord(PAIR_TOPIC, pair.conversation_id, pair.to_bytes(), pair.pair_id) for pair in dataset.pairs()
    )
    votes = (
        OutgoingRecord(VOTE_TOPIC, vote.pair.conversation_id, vote.to_bytes(), vote.vote_id) for vote in dataset.votes()
    )
    thumbs = (
        OutgoingRecord(THUMB_TOPIC, thumb.answer.conversation_id, thumb.to_bytes(), thumb.thumb_id)
        for thumb in dataset.thumbs()
    )
    with closing(log.producer()) as producer:
        sent = {
            PAIR_TOPIC: _send_all(producer, pairs),
            VOTE_TOPIC: _send_all(producer, votes),
            THUMB_TOPIC: _send_all(producer, thumbs),
        }
    return {topic: count for topic, count in sent.items() if count}


def _send_all(producer: EventProducer, records: Iterator[OutgoingRecord]) -> int:
    count = 0
    while batch := list(islice(records, BATCH)):
        _raise_first(producer.send(batch))
        count += len(batch)
    return count


def _raise_first(errors: Sequence[EventLogError | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
