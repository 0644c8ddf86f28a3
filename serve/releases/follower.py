"""Hears of adapters and of other servings' decisions: a thread that reads both topics from their beginning, again when
they broke."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from feedback.contracts import (
    ADAPTER_TOPIC,
    GATE_KEY,
    RELEASE_TOPIC,
    AdapterPublished,
    ContractError,
    GateChanged,
    ReleaseChanged,
)
from feedback.event_log import EventLog, EventLogError, StoredRecord
from serve.metrics import Metrics

POLL_S = 1.0
LONGEST_PAUSE_S = 60.0
log = structlog.get_logger(__name__)


class ReleaseFollower:
    """Calls back for every announcement; doubles do no harm, since names are for one set of weights, for ever.

    What another serving has decided stands in the ledger that all of them share; the topic says when to look there.

    Args:
        hear: called in this thread with each announcement of an adapter.
        heed: called in this thread after each batch that tells of a decision.
        look: called in this thread after each connection: what was announced to nobody may lie in the folder.
    """

    def __init__(
        self,
        event_log: EventLog,
        *,
        hear: Callable[[AdapterPublished], None],
        heed: Callable[[], None],
        look: Callable[[], None],
        metrics: Metrics,
        retry_s: float,
    ) -> None:
        self._log = event_log
        self._hear = hear
        self._heed = heed
        self._look = look
        self._metrics = metrics
        self._retry_s = retry_s
        self._pause = retry_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="release-follower", daemon=True)

    def start(self) -> None:
        """Start the thread; the event log need not be there yet."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop after the poll in hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except EventLogError as error:
                log.warning("topics of the releases out of reach", reason=str(error), next_try_s=self._pause)
                self._stopping.wait(self._pause)
                self._pause = min(self._pause * 2, LONGEST_PAUSE_S)

    def _follow(self) -> None:
        topics = [ADAPTER_TOPIC, RELEASE_TOPIC]
        self._log.ensure_topics(topics)
        consumer = self._log.consumer(topics, None)
        try:
            self._look()
            self._pause = self._retry_s
            while not self._stopping.is_set():
                decisions = [self._read(record) for record in consumer.poll(POLL_S)]
                if any(decisions):
                    self._heed()
        finally:
            consumer.close()

    def _read(self, record: StoredRecord) -> bool:
        """Take in a record; True where it tells of a decision."""
        if record.value is None:
            return False
        try:
            if record.topic == ADAPTER_TOPIC:
                self._hear(AdapterPublished.from_bytes(record.value))
                return False
            kind = GateChanged if record.key == GATE_KEY.encode() else ReleaseChanged
            kind.from_bytes(record.value)
        except ContractError as error:
            self._metrics.release_unreadable.inc()
            log.warning(
                "record not understood",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                reason=str(error),
            )
        # One that can't be read may be a decision too: the ledger has it.
        return record.topic == RELEASE_TOPIC
