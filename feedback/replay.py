"""Rebuilding what was lost: topics from the ledger, topics from the dataset's parts, snapshots from topics.

Nothing here can double anything: every event goes out in the bytes that it first had, and the curator drops by id what
the dataset holds. So a replay changes no snapshot, and a dataset made anew from a replay has the same snapshots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from feedback.contracts import FORGOTTEN_TOPIC, PAIR_TOPIC, RELEASE_TOPIC, THUMB_TOPIC, VOTE_TOPIC
from feedback.dataset import Dataset
from feedback.dataset.forgetting import is_import
from feedback.event_log import EventLog, EventLogError, EventProducer, OutgoingRecord, RecordTooLarge

if TYPE_CHECKING:
    from feedback.ledger import Ledger

LEDGER_TOPICS = (PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC, RELEASE_TOPIC, FORGOTTEN_TOPIC)
"""What the ledger has the record of."""
BATCH = 200
T = TypeVar("T")


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
    """Send every tombstone, pair, vote and thumb of the dataset again: for a new reader where the ledger is gone.

    Tombstones go first, so that a reader who has events of a forgotten voter, or meets them on the topics still, learns
    of it. Who is forgotten meanwhile is left out from then on. That an import was taken back is nobody's tombstone, and
    stays this dataset's own.

    Raises:
        EventLogError: the broker is away, or refuses a record; begin again when that is mended.
    """
    log.ensure_topics((FORGOTTEN_TOPIC, PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC))
    stones = [stone.event for stone in dataset.forgotten() if not is_import(stone.event.voter)]
    with closing(log.producer()) as producer:
        sent = {
            FORGOTTEN_TOPIC: _send_all(
                producer, (OutgoingRecord(FORGOTTEN_TOPIC, one.voter, one.to_bytes(), one.event_id) for one in stones)
            ),
            PAIR_TOPIC: _send_all(producer, _pairs(dataset)),
            VOTE_TOPIC: _send_all(producer, _votes(dataset)),
            THUMB_TOPIC: _send_all(producer, _thumbs(dataset)),
        }
    return {topic: count for topic, count in sent.items() if count}


def _pairs(dataset: Dataset) -> Iterator[OutgoingRecord]:
    for pairs in _batches(dataset.pairs()):
        forgotten = dataset.covering()
        for pair in pairs:
            if not forgotten.pair(pair):
                yield OutgoingRecord(PAIR_TOPIC, pair.conversation_id, pair.to_bytes(), pair.pair_id)


def _votes(dataset: Dataset) -> Iterator[OutgoingRecord]:
    for votes in _batches(dataset.votes()):
        forgotten = dataset.covering()
        for vote in votes:
            if not forgotten.vote(vote):
                yield OutgoingRecord(VOTE_TOPIC, vote.pair.conversation_id, vote.to_bytes(), vote.vote_id)


def _thumbs(dataset: Dataset) -> Iterator[OutgoingRecord]:
    for thumbs in _batches(dataset.thumbs()):
        forgotten = dataset.covering()
        for thumb in thumbs:
            if not forgotten.thumb(thumb):
                yield OutgoingRecord(THUMB_TOPIC, thumb.answer.conversation_id, thumb.to_bytes(), thumb.thumb_id)


def _send_all(producer: EventProducer, records: Iterator[OutgoingRecord]) -> int:
    count = 0
    for batch in _batches(records):
        _raise_first(producer.send(batch))
        count += len(batch)
    return count


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _raise_first(errors: Sequence[EventLogError | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
