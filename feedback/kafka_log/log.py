"""The event log on a broker: its topics, and who writes and reads them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kafka import errors as kafka_errors

from feedback.contracts import ADAPTER_TOPIC, FORGOTTEN_TOPIC, RELEASE_TOPIC
from feedback.event_log import EventConsumer, EventLogError, EventProducer
from feedback.kafka_log.client import MAX_RECORD_BYTES, REQUEST_TIMEOUT_MS, admin_client, topic_ids, translated
from feedback.kafka_log.consumer import Consumer
from feedback.kafka_log.producer import Producer

COMPACTED_TOPICS = frozenset({ADAPTER_TOPIC, FORGOTTEN_TOPIC, RELEASE_TOPIC})
"""Topics of which only the last record of a key matters."""
_ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[^\s:,/]+):[0-9]{1,5}$")


def addresses(bootstrap: str) -> list[str]:
    """The brokers of `host:port[,host:port]`.

    Raises:
        EventLogError: one of them isn't an address.
    """
    servers = [server.strip() for server in bootstrap.split(",")]
    for server in servers:
        if not _ADDRESS.match(server):
            raise EventLogError(f"{server!r} is no broker address; give host:port, or several with commas between")
    return servers


class KafkaEventLog:
    """Topics of a broker that speaks Kafka's protocol. Implements `feedback.event_log.EventLog`.

    Args:
        bootstrap: `host:port[,host:port]`.
        partitions: of a topic that has to be made.
        replication: of a topic that has to be made; -1 leaves it to the broker.
        seen: what another log of this broker had `seen`: this one goes on from there.

    Raises:
        EventLogError: `bootstrap` isn't an address.
    """

    def __init__(
        self, bootstrap: str, partitions: int = 3, replication: int = -1, seen: Mapping[str, str] | None = None
    ) -> None:
        self._servers = addresses(bootstrap)
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._replication = replication
        self._seen: dict[str, str] = dict(seen or {})
        self._lock = threading.Lock()
        # The client logs each failed attempt; its errors come up to our callers, who log what matters.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)

    @property
    def seen(self) -> dict[str, str]:
        """Id of each topic that `ensure_topics` has seen: by it a topic that was made again is told."""
        return dict(self._seen)

    def ensure_topics(self, topics: Iterable[str]) -> frozenset[str]:
        """Create what is missing; see `EventLog.ensure_topics`.

        Raises:
            EventLogUnavailable: the broker doesn't answer.
            EventLogError: it refuses.
        """
        wanted = sorted(set(topics))
        with self._lock, translated(self._bootstrap), admin_client(self._servers) as admin:
            before = topic_ids(admin, wanted)
            created = self._create(admin, [name for name in wanted if name not in before])
            if created:
                admin.wait_for_topics(created, timeout_ms=REQUEST_TIMEOUT_MS)
            after = topic_ids(admin, wanted)
            renewed = {name for name in wanted if self._seen.get(name, after.get(name)) != after.get(name)}
            self._seen.update(after)
        return frozenset({*created, *renewed})

    def producer(self) -> EventProducer:
        """A writer; it connects with the first `send`."""
        return Producer(self._bootstrap, self._servers)

    def consumer(self, topics: Sequence[str], group: str | None) -> EventConsumer:
        """A reader; it connects with the first `poll`."""
        return Consumer(self._bootstrap, self._servers, topics, group)

    def check(self) -> None:
        """Raises:
        EventLogUnavailable: the broker does not answer.
        """
        with translated(self._bootstrap), admin_client(self._servers) as admin:
            admin.list_topics()

    def _create(self, admin: Any, names: list[str]) -> list[str]:
        """Make topics one by one, so that one which another process made in the same moment doesn't spoil the rest."""
        created = []
        for name in names:
            configs = {"max.message.bytes": str(MAX_RECORD_BYTES)}
            if name in COMPACTED_TOPICS:
                configs["cleanup.policy"] = "compact"
            shape = {"num_partitions": self._partitions, "replication_factor": self._replication, "configs": configs}
            try:
                admin.create_topics({name: shape}, timeout_ms=REQUEST_TIMEOUT_MS)
            except kafka_errors.TopicAlreadyExistsError:
                continue
            created.append(name)
        return created
