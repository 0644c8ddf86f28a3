"""The event log on a broker: its topics, and who writes and reads them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import structlog
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import OffsetSpec

from feedback.config import FeedbackConfig, KafkaSecurity
from feedback.contracts import ADAPTER_TOPIC, FORGOTTEN_TOPIC, RELEASE_TOPIC
from feedback.event_log import EventConsumer, EventProducer, Place
from feedback.kafka_log.client import (
    MAX_RECORD_BYTES,
    REQUEST_TIMEOUT_MS,
    Brokers,
    is_volatile,
    topic_ids,
)
from feedback.kafka_log.consumer import Consumer
from feedback.kafka_log.producer import Producer
from feedback.kafka_security import options, worries

logger = structlog.get_logger(__name__)

COMPACTED_TOPICS = frozenset({ADAPTER_TOPIC, FORGOTTEN_TOPIC, RELEASE_TOPIC})
"""Topics of which only the last record of a key matters."""


class KafkaEventLog:
    """Topics of a broker that speaks Kafka's protocol. Implements `feedback.event_log.ErasableEventLog`.

    Args:
        bootstrap: `host:port[,host:port]`.
        partitions: of a topic that has to be made.
        replication: of a topic that has to be made; -1 leaves it to the broker.
        seen: what another log of this broker had `seen`: this one goes on from there.
        security: TLS and login; files and passwords are looked at by each call, for they may be renewed.

    Raises:
        EventLogError: `bootstrap` isn't an address.
    """

    def __init__(
        self,
        bootstrap: str,
        partitions: int = 3,
        replication: int = -1,
        seen: Mapping[str, str] | None = None,
        security: KafkaSecurity | None = None,
    ) -> None:
        self._brokers = Brokers(bootstrap, security or KafkaSecurity())
        self._partitions = partitions
        self._replication = replication
        self._seen: dict[str, str] = dict(seen or {})
        self._lock = threading.Lock()

    @classmethod
    def configured(cls, bootstrap: str, config: FeedbackConfig) -> Self:
        """As the settings say; what is unsafe about them goes to the log.

        Raises:
            EventLogError: `bootstrap` isn't an address, or TLS and login can't be used as set.
        """
        options(config.kafka_security)  # what is wrong with it is better said now than with the first call
        log = cls(bootstrap, config.partitions, config.replication, security=config.kafka_security)
        for worry in worries(config.kafka_security):
            logger.warning("the way to Kafka is less safe than it could be", reason=worry)
        return log

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
        with self._lock, self._brokers.admin() as admin:
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
        return Producer(self._brokers)

    def consumer(self, topics: Sequence[str], group: str | None) -> EventConsumer:
        """A reader; it connects with the first `poll`."""
        return Consumer(self._brokers, topics, group)

    def check(self) -> None:
        """Raises:
        EventLogUnavailable: the broker does not answer.
        """
        with self._brokers.admin() as admin:
            admin.list_topics()

    def in_memory(self) -> bool:
        """Whether it is the embedded broker; see `ErasableEventLog.in_memory`."""
        with self._brokers.admin() as admin:
            admin.list_topics()
            return is_volatile(admin)

    def renew(self, topics: Sequence[str]) -> None:
        """Empty these topics; see `ErasableEventLog.renew`."""
        with self._lock, self._brokers.admin() as admin:
            there = topic_ids(admin, list(topics))
            if there:
                admin.delete_topics(sorted(there), timeout_ms=REQUEST_TIMEOUT_MS)
            self._create(admin, list(topics))

    def ends(self, topics: Sequence[str]) -> Mapping[Place, int]:
        """Where each partition that holds anything ends; see `ErasableEventLog.ends`."""
        with self._brokers.admin() as admin:
            there = [topic for topic in admin.describe_topics(list(topics)) if topic["error_code"] == 0]
            places = [
                TopicPartition(one["name"], part["partition_index"]) for one in there for part in one["partitions"]
            ]
            first, end = (
                admin.list_partition_offsets(dict.fromkeys(places, which), timeout_ms=REQUEST_TIMEOUT_MS)
                for which in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
            )
        return {
            (place.topic, place.partition): end[place].offset
            for place in places
            if end[place].offset > first[place].offset
        }

    def erase(self, ends: Mapping[Place, int], read_by: str | None) -> bool:
        """Delete what a group has read; see `ErasableEventLog.erase`."""
        if not ends:
            return True
        with self._brokers.admin() as admin:
            if read_by is not None:
                committed = admin.list_group_offsets(read_by)[read_by]
                read = {(place.topic, place.partition): found.offset for place, found in committed.items()}
                if any(read.get(place, 0) < end for place, end in ends.items()):
                    return False
            wanted = {TopicPartition(*place): end for place, end in ends.items()}
            admin.delete_records(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
        return True

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
