"""Reading: as a member of a group, or alone from the beginning; and what the embedded broker's restarts ask for."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from feedback.event_log import StoredRecord, TopicsMissing
from feedback.kafka_log.client import (
    CLOSE_TIMEOUT_MS,
    MAX_RECORD_BYTES,
    REQUEST_TIMEOUT_MS,
    Brokers,
    connections,
    is_volatile,
    topic_ids,
)

FETCH_WAIT_MS = 250
"""The embedded broker answers a fetch that finds nothing only after about half of this time, also when something comes
meanwhile: 70 ms in the middle, where the curator waits a second for a fuller batch. Asking 20 times a second, as it did
with 50, takes 4% of a core while nothing happens; this 0.8%, four times as long still 0.5%."""
ALONE_FETCH_WAIT_MS = 1_000
"""The same for readers without a group, in serving: receipts and announcements can wait, and asking costs an engine's
cores (docs/serving-speed.md)."""
SESSION_TIMEOUT_MS = 6_000
JOIN_TIMEOUT_MS = 20_000
HEARTBEAT_MS = 2_000
UNREACHABLE_AFTER_S = 3.0
STUCK_JOIN_S = 30.0
"""On the embedded broker, a member without partitions for so long (12 s are usual after a kill) takes another group."""
logger = structlog.get_logger(__name__)


class Consumer:
    """A member of a group, or (group None) a lone reader from the beginning; not for several threads at once."""

    def __init__(self, brokers: Brokers, topics: Sequence[str], group: str | None) -> None:
        self._brokers = brokers
        self._topics = list(topics)
        self._group = group
        self._client: Any = None
        self._next: dict[tuple[str, int], int] = {}
        self._ids: dict[str, str] = {}
        self._connections: frozenset[Any] = frozenset()
        self._unreachable_since: float | None = None
        self._volatile = False
        self._unassigned_since: float | None = None
        self._detours = 0

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        """The next records; see `EventConsumer.poll`."""
        with self._brokers.translated():
            if self._client is None:
                self._connect()
            fetched = self._client.poll(int(timeout_s * 1000), max_records=max_records)
            if self._log_was_replaced():
                self._drop()
                return []
        if not fetched:
            self._complain()
            self._leave_a_stuck_group()
        records = [_stored(record) for part in fetched.values() for record in part]
        for record in records:
            self._next[(record.topic, record.partition)] = record.offset + 1
        return records

    def commit(self) -> None:
        """Mark what `poll` returned as dealt with; see `EventConsumer.commit`."""
        if self._group is None or self._client is None:
            return
        with self._brokers.translated():
            mine = {(tp.topic, tp.partition) for tp in self._client.assignment()}
            offsets = {
                TopicPartition(*where): OffsetAndMetadata(offset, "", -1)
                for where, offset in self._next.items()
                if where in mine
            }
            # Once only: another member may have a partition for a while, and be further when it comes back.
            self._next = {}
            if offsets:
                self._client.commit(offsets, timeout_ms=REQUEST_TIMEOUT_MS)

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet polled, by topic and partition; see `EventConsumer.lag`."""
        if self._client is None:
            return {}
        lags: dict[tuple[str, int], int] = {}
        with self._brokers.translated():
            for tp in self._client.assignment():
                highwater, position = self._client.highwater(tp), self._client.position(tp, timeout_ms=100)
                if highwater is not None and position is not None:
                    lags[(tp.topic, tp.partition)] = max(0, highwater - position)
        return lags

    def close(self) -> None:
        """Leave the group (so that others need not wait for the time-out); at most two seconds."""
        self._drop()

    def _connect(self) -> None:
        """Look first that the topics are there: the client takes a missing one badly, and never recovers."""
        with self._brokers.admin() as admin:
            ids = topic_ids(admin, self._topics)
            missing = [topic for topic in self._topics if topic not in ids]
            if missing:
                raise TopicsMissing(
                    f"{self._brokers.bootstrap} has no topic {', '.join(missing)}; make it with ensure_topics"
                )
            incarnation = _incarnation(admin, ids)
        self._volatile = bool(incarnation)
        detour = f".{self._detours}" if self._detours else ""
        self._client = self._brokers.client(
            KafkaConsumer,
            *self._topics,
            group_id=self._group and self._group + incarnation + detour,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS if self._group else ALONE_FETCH_WAIT_MS,
            max_partition_fetch_bytes=MAX_RECORD_BYTES,
            request_timeout_ms=JOIN_TIMEOUT_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            metadata_max_age_ms=5_000,
            reconnect_backoff_max_ms=1_000,
            metrics_enabled=False,
        )
        self._ids, self._next, self._connections, self._unreachable_since = ids, {}, frozenset(), None
        self._unassigned_since = None

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def _log_was_replaced(self) -> bool:
        """True if a topic vanished, or is another one than when reading began: then the positions mean nothing.

        A fetch that was answered over a new connection is not trusted before the ids have been seen over it.
        """
        standing = connections(self._client._client)
        if standing - self._connections:
            self._refresh_metadata()
            self._connections = standing
        return any(str(self._client._cluster.topic_id(topic)) != self._ids[topic] for topic in self._topics)

    def _refresh_metadata(self) -> None:
        done = threading.Event()
        self._client._cluster.request_update().add_both(lambda _: done.set())
        if not done.wait(REQUEST_TIMEOUT_MS / 1000):
            raise kafka_errors.KafkaTimeoutError("no metadata after a new connection")

    def _complain(self) -> None:
        """Nothing came: is it because there is nothing, or because of the broker?

        Raises:
            EventLogUnavailable: no connection for some seconds.
        """
        now = time.monotonic()
        self._unreachable_since = None if connections(self._client._client) else self._unreachable_since or now
        if self._unreachable_since is not None and now - self._unreachable_since >= UNREACHABLE_AFTER_S:
            raise self._brokers.unreachable("no connection")

    def _leave_a_stuck_group(self) -> None:
        """The embedded broker can wait for ever for a member that was killed as it joined: then read in another group.

        That one begins at the beginning, and readers drop by id what they have. A Kafka counts such a member out.
        """
        if self._group is None or not self._volatile or self._client.assignment():
            self._unassigned_since = None
            return
        now = time.monotonic()
        self._unassigned_since = self._unassigned_since or now
        if now - self._unassigned_since < STUCK_JOIN_S:
            return
        self._detours += 1
        logger.warning("the broker gives this group no partitions; reading in another", group=self._group)
        self._drop()


def _incarnation(admin: Any, ids: Mapping[str, str]) -> str:
    """What to add to a group's name: nothing, but on the embedded broker a mark of its run (its topics' ids are new).

    A member that outlived a restart joins the new broker's group before it knows, as a ghost that leads the group and
    never answers; the embedded broker waits for it for ever. It forgot the group anyway, so each run gets its own.
    """
    if not is_volatile(admin):
        return ""
    return f".{min(ids.values())[-12:]}"


def _stored(record: Any) -> StoredRecord:
    return StoredRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        timestamp_ms=record.timestamp,
    )
