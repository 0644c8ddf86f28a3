"""Hears of published adapters: a thread that reads the adapters topic from its beginning, again when it broke."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from feedback.contracts import ADAPTER_TOPIC, AdapterPublished, ContractError
from feedback.event_log import EventLog, EventLogError, StoredRecord
from serve.metrics import Metrics

POLL_S = 0.5
LONGEST_PAUSE_S = 60.0
log = structlog.get_logger(__name__)


class AdapterFollower:
    """Calls back for every announcement; doubles do no harm, since names are for one set of weights, for ever.

    Args:
        hear: called in this thread with each announcement.
        look: called in this thread after each connection: what was announced to nobody may lie in the folder.
    """

    def __init__(
        self,
        event_log: EventLog,
        *,
        hear: Callable[[AdapterPublished], None],
        look: Callable[[], None],
        metrics: Metrics,
        retry_s: float,
    ) -> None:
        self._log = event_log
        self._hear = hear
        self._look = look
        self._metrics = metrics
        self._retry_s = retry_s
        self._pause = retry_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-follower", daemon=True)

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
                log.warning("adapters topic out of reach", reason=str(error), next_try_s=self._pause)
                self._stopping.wait(self._pause)
                self._pause = min(self._pause * 2, LONGEST_PAUSE_S)

    def _follow(self) -> None:
        self._log.ensure_topics([ADAPTER_TOPIC])
        consumer = self._log.consumer([ADAPTER_TOPIC], None)
        try:
            self._look()
            self._pause = self._retry_s
            while not self._stopping.is_set():
                for record in consumer.poll(POLL_S):
                    self._read(record)
        finally:
            consumer.close()

    def _read(self, record: StoredRecord) -> None:
        if record.value is None:
            return
        try:
            event = AdapterPublished.from_bytes(record.value)
        except ContractError as error:
            self._metrics.release_unreadable.inc()
            log.warning(
                "announcement not understood", partition=record.partition, offset=record.offset, reason=str(error)
            )
            return
        self._hear(event)
