"""The relay: a daemon thread that moves the ledger's outbox to the event log and hears what the curator has of it.

It sends rows in their order, marks them sent when the broker has acknowledged them, and confirmed when the curator's
receipt is there. What may have been lost goes again: rows of topics that had to be made again, rows that an earlier
process sent, and rows whose receipt is overdue. Events carry ids, so that sending one twice does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from feedback.config import FeedbackConfig
from feedback.contracts import RECEIPT_TOPIC, TOPICS, ContractError, RecordsCurated
from feedback.event_log import (
    EventConsumer,
    EventLog,
    EventLogError,
    EventProducer,
    OutgoingRecord,
    RecordTooLarge,
    StoredRecord,
)
from feedback.ledger import Ledger, LedgerUnavailable, OutboxRow
from feedback.ledger.outbox import BATCH_BYTES, RECEIPTED_TOPICS

logger = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
TOPICS_CHECK_S = 10.0
"""Seconds between looks whether the broker still has the topics that it had. A broker that was started anew is seen by
the reader of receipts, with its connection; this finds what somebody else made again."""
OVERDUE_CHECK_S = 5.0
LISTEN_S = 0.2
"""Seconds that the idle relay listens for receipts. Not 0: Kafka's client gives up whatever it is at when a poll ends,
and would never find its way back to a broker that was started anew."""
GATHER_S = 0.02
"""Seconds that the relay listens for receipts between two batches that were not full."""


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """How the relay is. `error` is the last failure, None while connected."""

    running: bool
    connected: bool
    error: str | None


class RelayMetrics:
    """What the relay counts. How long the outbox is, its reader asks the ledger (`Ledger.outbox_stats`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"hustings_outbox_{name}", help_text, labels, registry=registry)

        self.sent = counter("sent", "Events acknowledged by the broker, repeats included")
        self.confirmed = counter("confirmed", "Events that the curator has confirmed")
        self.requeued = counter("requeued", "Events to be sent again, by cause", "cause")
        self.failures = counter("failures", "Times that the relay lost the broker or the ledger")
        self.connected = Gauge(
            "hustings_outbox_connected", "1 while the relay reaches the broker and the ledger", registry=registry
        )


class Relay:
    """Moves the outbox of one ledger. Start it once; it goes on until it is stopped, whatever happens.

    Args:
        on_topics_made: called in the relay's thread with the names of topics that had to be made: what they should hold
            has to be announced again by whoever knows it. Can be set until `start`.
        metrics: where to count; None counts where nobody looks.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: EventLog,
        config: FeedbackConfig,
        *,
        on_topics_made: Callable[[frozenset[str]], None] | None = None,
        metrics: RelayMetrics | None = None,
    ) -> None:
        self._metrics = metrics or RelayMetrics(CollectorRegistry())
        self.on_topics_made = on_topics_made
        self._ledger = ledger
        self._log = log
        self._config = config
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._connected = False
        self._first = True

    def start(self) -> None:
        """Start the thread; it may begin before the broker is there."""
        if self._thread is not None:
            raise RuntimeError("the relay has been started; make another to start again")
        self._ledger.on_outbox(self.wake)
        self._thread = threading.Thread(target=self._run, name="outbox-relay", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop after the batch in hand; what is pending stays in the ledger."""
        self._stopping.set()
        self.wake()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """There is something to send: don't wait out the idle time."""
        self._woken.set()

    def status(self) -> RelayStatus:
        """How the relay is."""
        running = self._thread is not None and self._thread.is_alive()
        return RelayStatus(running, running and self._connected, self._error)

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._serve_connection()
            except (EventLogError, LedgerUnavailable) as error:
                self._lost(error)
            except Exception as error:
                # The thread must outlive what nobody foresaw.
                self._lost(error)
                logger.exception("the relay met something unforeseen and goes on", error=str(error))
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        self._connected = False
        self._metrics.connected.set(0)

    def _serve_connection(self) -> None:
        connection = _Connection(self._ledger, self._log, self._config, self._metrics, self._topics_made)
        try:
            connection.open(first=self._first)
            self._first = False
            while True:
                self._woken.clear()  # before the look at the outbox: what is recorded after it wakes this thread again
                if self._stopping.is_set():  # `stop` sets it before it wakes
                    return
                busy = connection.turn()
                self._found()
                if not busy:
                    # Not in the reader: waiting there would cost a wake-up for each fetch that brings nothing.
                    self._woken.wait(self._config.relay_idle_s)
        finally:
            connection.close()

    def _topics_made(self, topics: frozenset[str]) -> None:
        if self.on_topics_made is not None:
            self.on_topics_made(topics)

    def _found(self) -> None:
        if self._connected:
            return
        if self._error is not None:
            logger.info("the relay is connected again")
        self._connected, self._error = True, None
        self._metrics.connected.set(1)

    def _lost(self, error: Exception) -> None:
        if self._error != str(error):
            logger.warning("the relay can't go on and will try again; votes are safe in the ledger", error=str(error))
        self._connected, self._error = False, str(error)
        self._metrics.connected.set(0)
        self._metrics.failures.inc()


class _Connection:
    """One acquaintance with the broker, from ensuring its topics to the first failure."""

    def __init__(
        self,
        ledger: Ledger,
        log: EventLog,
        config: FeedbackConfig,
        metrics: RelayMetrics,
        topics_made: Callable[[frozenset[str]], None],
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._config = config
        self._metrics = metrics
        self._topics_made = topics_made
        self._producer: EventProducer | None = None
        self._consumer: EventConsumer | None = None
        self._offsets: dict[int, int] = {}
        self._next = {"topics": 0.0, "overdue": 0.0}

    def open(self, *, first: bool) -> None:
        """Make the topics, and the clients. At the first time nobody can tell whether the broker is still the same."""
        self._ensure_topics()
        if first:
            self._requeue("start", frozenset(RECEIPTED_TOPICS))
        self._producer = self._log.producer()
        self._consumer = self._log.consumer([RECEIPT_TOPIC], group=None)

    def close(self) -> None:
        """Close the clients."""
        for client in (self._producer, self._consumer):
            if client is not None:
                client.close()

    def turn(self) -> bool:
        """Look after everything once; True where there may be more to send."""
        assert self._consumer is not None
        if self._is_time("topics", TOPICS_CHECK_S):
            self._ensure_topics()
        if self._is_time("overdue", OVERDUE_CHECK_S):
            self._count("overdue", self._ledger.requeue(None, self._config.receipt_timeout_s))
        rows = self._ledger.pending(self._config.relay_batch)
        if rows:
            self._send(rows)
        # A backlog goes without a pause; what trickles in may gather a little: each batch costs the disk a commit.
        self._hear(self._consumer.poll(0.0 if self._is_full(rows) else GATHER_S if rows else LISTEN_S))
        return bool(rows)

    def _is_full(self, rows: Sequence[OutboxRow]) -> bool:
        return len(rows) == self._config.relay_batch or 2 * sum(len(row.value) for row in rows) > BATCH_BYTES

    def _ensure_topics(self) -> frozenset[str]:
        """Make the topics that are missing, and send again what those held that had to be made; returns their names."""
        made = self._log.ensure_topics(TOPICS)
        if made:
            logger.info("topics made", topics=sorted(made))
            if RECEIPT_TOPIC in made:
                self._offsets.clear()  # it begins at 0 again, which tells nothing more
            self._requeue("topic", made)
            self._topics_made(made)
        return made

    def _requeue(self, cause: str, topics: frozenset[str]) -> None:
        self._count(cause, self._ledger.requeue(topics, None))

    def _count(self, cause: str, rows: int) -> None:
        if rows:
            self._metrics.requeued.labels(cause).inc(rows)
            logger.info("events will be sent again", cause=cause, events=rows)

    def _send(self, rows: Sequence[OutboxRow]) -> None:
        assert self._producer is not None
        results = self._producer.send([OutgoingRecord(row.topic, row.key, row.value, row.event_id) for row in rows])
        sent: list[int] = []
        failed: dict[tuple[str, str], EventLogError] = {}
        for row, error in zip(rows, results, strict=True):
            if isinstance(error, RecordTooLarge):
                self._park(row, error)
            elif error is not None:
                failed.setdefault((row.topic, row.key), error)
            elif (row.topic, row.key) not in failed:
                sent.append(row.seq)
            # Else an earlier event of the key failed: this one goes again after it, which keeps their order.
        if sent:
            self._ledger.mark_sent(sent)
            self._metrics.sent.inc(len(sent))
        if failed:
            raise next(iter(failed.values()))

    def _park(self, row: OutboxRow, error: RecordTooLarge) -> None:
        reason = f"{error}; raise the broker's message.max.bytes, then send parked events again"
        self._ledger.park(row.seq, reason)
        logger.error("event parked: the broker refuses it", event_id=row.event_id, topic=row.topic, reason=reason)

    def _hear(self, records: Sequence[StoredRecord]) -> None:
        confirmed: list[str] = []
        for record in records:
            self._watch_offset(record)
            try:
                confirmed.extend(RecordsCurated.from_bytes(record.value or b"").event_ids)
            except ContractError as error:
                # Its events become overdue and go again.
                logger.warning("receipt not understood", offset=record.offset, error=str(error))
        if confirmed:
            self._metrics.confirmed.inc(self._ledger.mark_confirmed(confirmed))

    def _watch_offset(self, record: StoredRecord) -> None:
        seen = self._offsets.get(record.partition, -1)
        self._offsets[record.partition] = record.offset
        if record.offset <= seen:
            # Offsets never go back in a log that remembers: this one has lost what it held. Topics that were made
            # again are found by `_ensure_topics` too, later: it is asked now, so that nothing goes twice for one loss.
            if RECEIPT_TOPIC not in self._ensure_topics():
                self._requeue("forgotten", frozenset(TOPICS))
            self._offsets = {record.partition: record.offset}

    def _is_time(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._next[what]:
            return False
        self._next[what] = now + every_s
        return True
