"""The curator: reads pairs and votes from the event log and makes them durable in the dataset.

A batch goes through three steps, and a crash between any two loses nothing, because the next curator reads it again
and the dataset drops what it has by id (docs/architecture.md, "Nothing lost, nothing doubled"):

1. parts: what is valid and new goes into part files, what can't be read into the dead letters; both are on the disk.
2. receipts: the ledger is told of every event of the batch, repeats too, because it may have missed the first receipt.
3. commit: the group's offsets move on.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from feedback.comparisons import POSITIONS
from feedback.config import FeedbackConfig
from feedback.contracts import (
    DEAD_LETTER_TOPIC,
    FORGOTTEN_TOPIC,
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    THUMB_TOPIC,
    VOTE_TOPIC,
    ContractError,
    DeadLetter,
    PairShown,
    RecordsCurated,
    ThumbGiven,
    VoteCast,
    VoterForgotten,
)
from feedback.dataset import Covering, Dataset, DatasetError
from feedback.dataset.rows import prompt_row, vote_rows
from feedback.erasing import Eraser
from feedback.event_log import (
    ErasableEventLog,
    EventConsumer,
    EventLogError,
    EventProducer,
    GroupRebalanced,
    OutgoingRecord,
    RecordTooLarge,
    StoredRecord,
)
from feedback.paths import DataPaths
from feedback.priority import step_back

logger = structlog.get_logger(__name__)

GROUP = "hustings-curator"
NICENESS = 5
"""How far the curator steps back behind serving."""
READ_TOPICS = (PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC, FORGOTTEN_TOPIC)
NEEDED_TOPICS = (*READ_TOPICS, DEAD_LETTER_TOPIC, RECEIPT_TOPIC)
POLL_S = 0.5
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
BATCH_BYTES = 32 << 20
"""A batch of so much is not waited to be fuller: records may be of megabytes, and a batch lies in the memory."""
LONGEST_ID = 256
RECEIPT_IDS = 500
"""Event ids a receipt at most."""

RECORDS = Counter("hustings_curator_records_total", "Records read, by what became of them", ["topic", "outcome"])
for _topic in READ_TOPICS:  # there from the start: Prometheus sees no rise in a series that begins at 1
    RECORDS.labels(_topic, "dead_letter")
BATCH_SECONDS = Histogram("hustings_curator_batch_seconds", "Seconds from a batch's last record to its commit")
LAG = Gauge("hustings_curator_lag", "Records not yet read", ["topic", "partition"])
CONNECTED = Gauge("hustings_curator_connected", "1 while the curator's last talk with broker and disk went well")
FAILURES = Counter("hustings_curator_failures_total", "Times that it had to begin again", ["cause"])
LAST_COMMIT = Gauge("hustings_curator_last_commit_timestamp_seconds", "When offsets were last committed")


class CuratorError(Exception):
    """The curator can't start; the message says what to do."""


@dataclass(slots=True)
class Batch:
    """What a batch of records turned out to be.

    Attributes:
        event_ids: of every event that the ledger may wait for, in the order read.
    """

    pairs: list[PairShown] = field(default_factory=list)
    votes: list[VoteCast] = field(default_factory=list)
    thumbs: list[ThumbGiven] = field(default_factory=list)
    forgotten: list[VoterForgotten] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)


class Curator:
    """One member of the group of curators.

    Args:
        at: called with "parts", "receipts" and "commit" after each step of a batch; tests stop the world there.
    """

    def __init__(
        self,
        log: ErasableEventLog,
        dataset: Dataset,
        config: FeedbackConfig,
        *,
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._log = log
        self._dataset = dataset
        self._config = config
        self._at = at
        self._trouble: str | None = None
        self._lagging: set[tuple[str, int]] = set()
        self._eraser = Eraser(log, dataset, config, GROUP)

    def run(self, stop: threading.Event) -> None:
        """Curate until `stop` is set. Broker or disk failing only makes it wait and begin again at the last commit."""
        pause = FIRST_PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            try:
                self._serve(stop)
            except (EventLogError, DatasetError) as error:
                self._in_trouble(error)
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            stop.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        CONNECTED.set(0)

    def _serve(self, stop: threading.Event) -> None:
        self._log.ensure_topics(NEEDED_TOPICS)
        with (
            closing(self._log.producer()) as producer,
            closing(self._log.consumer(READ_TOPICS, GROUP)) as consumer,
        ):
            while not stop.is_set():
                records = self._gather(consumer, stop)
                if records:
                    with BATCH_SECONDS.time():
                        self._curate(records, consumer, producer)
                self._out_of_trouble()  # not before: reading goes well on a full disk
                if records:
                    self._eraser.has_read(_bytes(records))
                lag = consumer.lag()
                self._tell_lag(lag)
                if self._eraser.look(behind=sum(lag.values())):
                    return

    def _gather(self, consumer: EventConsumer, stop: threading.Event) -> list[StoredRecord]:
        """A batch: as many records as there are, and what else comes within the linger time and BATCH_BYTES."""
        records = consumer.poll(POLL_S, self._config.curate_batch)
        deadline = time.monotonic() + self._config.curate_linger_s
        while records and len(records) < self._config.curate_batch and _bytes(records) < BATCH_BYTES:
            if stop.is_set():
                break
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            records += consumer.poll(min(remaining, POLL_S), self._config.curate_batch - len(records))
        return records

    def _tell_lag(self, lag: Mapping[tuple[str, int], int]) -> None:
        for gone in self._lagging - lag.keys():
            LAG.remove(*gone)  # another curator's now, who tells of it
        for where, behind in lag.items():
            LAG.labels(*where).set(behind)
        self._lagging = set(lag)

    def _curate(self, records: Sequence[StoredRecord], consumer: EventConsumer, producer: EventProducer) -> None:
        batch = sort_out(records)
        self._make_durable(batch)
        self._at("parts")
        self._send(producer, [_outgoing_letter(letter) for letter in batch.dead])
        self._send(producer, receipts(batch.event_ids))
        self._at("receipts")
        try:
            consumer.commit()
        except GroupRebalanced as error:
            # Another member reads these again and drops them by id.
            logger.info("partitions moved to another curator before the commit", error=str(error))
        LAST_COMMIT.set_to_current_time()
        self._at("commit")
        self._dataset.merge_parts()

    def _make_durable(self, batch: Batch) -> None:
        _leave_out(batch, self._dataset.covering())
        new_pairs = self._dataset.unknown_pairs(pair.pair_id for pair in batch.pairs)
        new_votes = self._dataset.unknown_votes(vote.vote_id for vote in batch.votes)
        self._dataset.append_pairs(batch.pairs)
        self._dataset.append_votes(batch.votes)
        new_thumbs = self._dataset.unknown_thumbs(thumb.thumb_id for thumb in batch.thumbs)
        self._dataset.append_thumbs(batch.thumbs)
        for stone in self._dataset.forget_all(batch.forgotten) if batch.forgotten else ():
            logger.info("voter forgotten", voter=stone.event.voter, snapshots=stone.snapshots)
        RECORDS.labels(FORGOTTEN_TOPIC, "stored").inc(len(batch.forgotten))
        if batch.dead:  # of voters too whose tombstones came with them, or since
            _leave_out_letters(batch, self._dataset.covering())
        for letter in batch.dead:
            path = self._dataset.keep_dead_letter(letter)
            logger.warning(
                "record not understood, kept as a dead letter", topic=letter.topic, error=letter.error, file=str(path)
            )
            RECORDS.labels(letter.topic, "dead_letter").inc()
        _count(PAIR_TOPIC, len(batch.pairs), len(new_pairs))
        _count(VOTE_TOPIC, len(batch.votes), len(new_votes))
        _count(THUMB_TOPIC, len(batch.thumbs), len(new_thumbs))

    def _send(self, producer: EventProducer, records: Sequence[OutgoingRecord]) -> None:
        for record, error in zip(records, producer.send(records), strict=True):
            if isinstance(error, RecordTooLarge) and record.topic == DEAD_LETTER_TOPIC:
                # The whole of it lies on the disk; the topic gets a note without the bytes.
                self._send(producer, [_without_value(record)])
            elif error is not None:
                raise error

    def _in_trouble(self, error: EventLogError | DatasetError) -> None:
        CONNECTED.set(0)
        FAILURES.labels("dataset" if isinstance(error, DatasetError) else "event_log").inc()
        if self._trouble != str(error):
            logger.warning("curating waits and will go on; nothing is lost", error=str(error))
        self._trouble = str(error)

    def _out_of_trouble(self) -> None:
        if self._trouble is not None:
            logger.info("curating again")
        self._trouble = None
        CONNECTED.set(1)


def _bytes(records: Sequence[StoredRecord]) -> int:
    return sum(len(record.value or b"") for record in records)


def sort_out(records: Sequence[StoredRecord]) -> Batch:
    """Read every record: pairs, votes, and what is neither. Tombstones (no value) are nobody's event."""
    batch = Batch()
    for record in records:
        if record.value is None:
            RECORDS.labels(record.topic, "tombstone").inc()
            continue
        try:
            if record.topic == PAIR_TOPIC:
                pair = _readable_pair(record.value)
                batch.pairs.append(pair)
                batch.event_ids.append(pair.pair_id)
            elif record.topic == THUMB_TOPIC:
                thumb = ThumbGiven.from_bytes(record.value)
                batch.thumbs.append(thumb)
                batch.event_ids.append(thumb.thumb_id)
            elif record.topic == FORGOTTEN_TOPIC:
                event = VoterForgotten.from_bytes(record.value)
                batch.forgotten.append(event)
                batch.event_ids.append(event.event_id)
            else:
                vote = _readable_vote(record.value)
                batch.votes.append(vote)
                batch.event_ids.append(vote.vote_id)
        except ContractError as error:
            batch.dead.append(_dead_letter(record, error))
            if event_id := _id_in_the_wreck(record):
                batch.event_ids.append(event_id)
    return batch


def _leave_out(batch: Batch, forgotten: Covering) -> None:
    """Drop what forgotten voters said; it is receipted all the same, so that nobody sends it again."""
    pairs, votes, thumbs = len(batch.pairs), len(batch.votes), len(batch.thumbs)
    _leave_out_letters(batch, forgotten)
    batch.pairs = [pair for pair in batch.pairs if not forgotten.pair(pair)]
    batch.votes = [vote for vote in batch.votes if not forgotten.vote(vote)]
    batch.thumbs = [thumb for thumb in batch.thumbs if not forgotten.thumb(thumb)]
    RECORDS.labels(PAIR_TOPIC, "forgotten").inc(pairs - len(batch.pairs))
    RECORDS.labels(VOTE_TOPIC, "forgotten").inc(votes - len(batch.votes))
    RECORDS.labels(THUMB_TOPIC, "forgotten").inc(thumbs - len(batch.thumbs))


def _leave_out_letters(batch: Batch, forgotten: Covering) -> None:
    batch.dead = [letter for letter in batch.dead if not forgotten.letter(base64.b64decode(letter.value or ""))]


def receipts(event_ids: Sequence[str]) -> list[OutgoingRecord]:
    """The receipts for these events, each named once."""
    once = list(dict.fromkeys(event_ids))
    chunks = [tuple(once[start : start + RECEIPT_IDS]) for start in range(0, len(once), RECEIPT_IDS)]
    return [OutgoingRecord(RECEIPT_TOPIC, ids[0], RecordsCurated(event_ids=ids).to_bytes()) for ids in chunks]


def _readable_pair(value: bytes) -> PairShown:
    pair = PairShown.from_bytes(value)
    _require_sides(pair)
    prompt_row(pair)
    return pair


def _readable_vote(value: bytes) -> VoteCast:
    """A vote that can become a row of a snapshot: one that can't would stop every snapshot after it."""
    vote = VoteCast.from_bytes(value)
    _require_sides(vote.pair)
    vote_rows(vote)
    return vote


def _require_sides(pair: PairShown) -> None:
    positions = [completion.position for completion in pair.completions]
    needed = POSITIONS[: len(positions)]
    if sorted(positions) != list(needed):
        raise ContractError(
            f"completions: positions are {', '.join(positions)}; {' and '.join(needed)} are needed, each once"
        )


def _dead_letter(record: StoredRecord, error: ContractError) -> DeadLetter:
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=None if record.key is None else base64.b64encode(record.key).decode(),
        value=None if record.value is None else base64.b64encode(record.value).decode(),
        error=str(error)[:2_000],
    )


def _outgoing_letter(letter: DeadLetter) -> OutgoingRecord:
    return OutgoingRecord(DEAD_LETTER_TOPIC, f"{letter.topic}/{letter.partition}/{letter.offset}", letter.to_bytes())


def _without_value(record: OutgoingRecord) -> OutgoingRecord:
    letter = DeadLetter.from_bytes(record.value or b"")
    note = f"{letter.error[:1_000]} (too large for this topic: its bytes are in the dataset's dead-letters folder)"
    return _outgoing_letter(letter.model_copy(update={"value": None, "error": note}))


def _id_in_the_wreck(record: StoredRecord) -> str | None:
    """The event's id, if so much can be read: then the ledger needn't send it again and again."""
    try:
        wreck = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        return None
    name = {PAIR_TOPIC: "pair_id", THUMB_TOPIC: "thumb_id", FORGOTTEN_TOPIC: "event_id"}.get(record.topic, "vote_id")
    event_id = wreck.get(name) if isinstance(wreck, dict) else None
    # No ledger waits for a longer one, and a receipt that holds it may be too large for the broker, for ever.
    return event_id if isinstance(event_id, str) and 0 < len(event_id) <= LONGEST_ID else None


def _count(topic: str, read: int, stored: int) -> None:
    RECORDS.labels(topic, "stored").inc(stored)
    RECORDS.labels(topic, "duplicate").inc(read - stored)


@contextmanager
def _metrics_server(port: int, host: str = "127.0.0.1") -> Iterator[None]:
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise CuratorError(
            f"port {port} for the curator's metrics is in use ({error.strerror}); "
            "set feedback.curator_metrics_port to another, or to 0 for none"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(config: FeedbackConfig, paths: DataPaths, bootstrap: str, stop: threading.Event) -> None:
    """Run a curator until `stop` is set.

    Raises:
        CuratorError: the metrics port is in use.
        DatasetError: the data folder can't be made.
        EventLogError: `bootstrap` isn't an address, or TLS and login can't be used as set.
    """
    from feedback.kafka_log import KafkaEventLog

    step_back(NICENESS)
    log = KafkaEventLog.configured(bootstrap, config)
    dataset = Dataset(paths.dataset)
    with _metrics_server(config.curator_metrics_port, config.curator_metrics_host):
        logger.info("curating", kafka=bootstrap, dataset=str(paths.dataset))
        Curator(log, dataset, config).run(stop)
