"""Writing: idempotent, acks=all, in order within a key."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from feedback.event_log import EventLogError, EventLogUnavailable, OutgoingRecord
from feedback.kafka_log.client import (
    CLOSE_TIMEOUT_MS,
    CONNECT_TIMEOUT_MS,
    DELIVERY_TIMEOUT_MS,
    MAX_RECORD_BYTES,
    REQUEST_TIMEOUT_MS,
    Brokers,
    connections,
)


class Producer:
    """Idempotent, acks=all; the client beneath is thrown away after any failure and made anew."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._client: Any = None
        self._lock = threading.Lock()

    def send(self, records: Sequence[OutgoingRecord]) -> list[EventLogError | None]:
        """Send a batch and wait; see `EventProducer.send`."""
        if not records:
            return []
        with self._lock:
            self._client = self._client or self._connect()
            outcomes = self._settle([*self._enqueue(records)])
            if any(isinstance(outcome, EventLogUnavailable) for outcome in outcomes):
                self._drop()
        if all(isinstance(outcome, EventLogUnavailable) for outcome in outcomes):
            assert outcomes[0] is not None
            raise outcomes[0]
        return _in_order(records, outcomes)

    def close(self) -> None:
        """Let go of the broker; at most two seconds."""
        with self._lock:
            self._drop()

    def _enqueue(self, records: Sequence[OutgoingRecord]) -> Iterator[Any]:
        """A future, or the error, for each record. A topic that nobody knows is waited for once, not once a record."""
        unknown: dict[str, Exception] = {}
        for record in records:
            if record.topic in unknown:
                yield unknown[record.topic]
                continue
            try:
                yield self._client.send(record.topic, value=record.value, key=record.key.encode())
            except kafka_errors.KafkaTimeoutError as error:
                unknown[record.topic] = self._no_metadata(record.topic, error)
                yield unknown[record.topic]
            except kafka_errors.KafkaError as error:
                yield error

    def _no_metadata(self, topic: str, error: Exception) -> Exception:
        connected = connections(self._client._sender._client)
        return kafka_errors.UnknownTopicOrPartitionError(topic) if connected else error

    def _settle(self, sent: Sequence[Any]) -> list[EventLogError | None]:
        """Wait for the futures. The client fails each by its delivery timeout; ours is only a second fence."""
        deadline = time.monotonic() + DELIVERY_TIMEOUT_MS / 1000 + 5
        outcomes: list[EventLogError | None] = []
        for future in sent:
            try:
                if isinstance(future, Exception):
                    raise future
                future.get(timeout=max(0.01, deadline - time.monotonic()))
                outcomes.append(None)
            except kafka_errors.KafkaError as error:
                outcomes.append(self._brokers.as_ours(error))
        return outcomes

    def _connect(self) -> Any:
        return self._brokers.client(
            KafkaProducer,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            linger_ms=5,
            batch_size=128 * 1024,
            max_request_size=MAX_RECORD_BYTES,
            max_block_ms=CONNECT_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
            reconnect_backoff_max_ms=1_000,
            metrics_enabled=False,
        )

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(timeout=CLOSE_TIMEOUT_MS / 1000)


def _in_order(
    records: Sequence[OutgoingRecord], outcomes: Sequence[EventLogError | None]
) -> list[EventLogError | None]:
    """Fail what follows a record that is to be sent again, within its key, so that the key keeps its order."""
    held: dict[tuple[str, str], EventLogUnavailable] = {}
    settled: list[EventLogError | None] = []
    for record, outcome in zip(records, outcomes, strict=True):
        where = (record.topic, record.key)
        if isinstance(outcome, EventLogUnavailable):
            held.setdefault(where, outcome)
        settled.append(held.get(where) if outcome is None else outcome)
    return settled
