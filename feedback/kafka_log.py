"""The event log on Kafka's protocol: the one module that knows a Kafka client (kafka-python).

Two brokers are meant: Apache Kafka, and the embedded one of `feedback.broker`. What is peculiar here, and why:

- Every call is bounded in time. A broker that is down gives `EventLogUnavailable`, never a hang.
- Topics are made by `ensure_topics` alone. The client asks brokers to make topics on sight, and in 3.0.12 the option
  that forbids it does not reach the request (`_client`); a topic made by accident hides that a volatile broker forgot.
- The embedded broker forgets everything on restart. An idempotent producer then stays broken for ever, so it is thrown
  away after any failure. A reader's old positions would skip what the new log holds, and the client never recovers from
  a topic that vanished: so ours checks the topics' ids whenever its connection was renewed and starts over with a new
  client when they changed.
- The embedded broker's end offsets are wrong; lag comes from the highwater that fetches carry.
- Nothing relies on Kafka's transactions: idempotent sends, and readers that de-duplicate by id.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata

from feedback.broker import VOLATILE_CLUSTER
from feedback.contracts import ADAPTER_TOPIC, FORGOTTEN_TOPIC, RELEASE_TOPIC
from feedback.event_log import (
    EventConsumer,
    EventLogError,
    EventLogUnavailable,
    EventProducer,
    GroupRebalanced,
    OutgoingRecord,
    RecordTooLarge,
    StoredRecord,
    TopicsMissing,
)

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Largest record; topics are made with this limit (a long conversation with four answers and their ids fits)."""
COMPACTED_TOPICS = frozenset({ADAPTER_TOPIC, FORGOTTEN_TOPIC, RELEASE_TOPIC})
"""Topics of which only the last record of a key matters."""

CONNECT_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 5_000
DELIVERY_TIMEOUT_MS = 10_000
CLOSE_TIMEOUT_MS = 2_000
FETCH_WAIT_MS = 50
SESSION_TIMEOUT_MS = 6_000
JOIN_TIMEOUT_MS = 20_000
HEARTBEAT_MS = 2_000
UNREACHABLE_AFTER_S = 3.0
STUCK_JOIN_S = 30.0
"""On the embedded broker, a member without partitions for so long (12 s are usual after a kill) takes another group."""

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_REBALANCED = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.FencedInstanceIdError,
)
_DENIED = (kafka_errors.AuthorizationError, kafka_errors.SaslAuthenticationFailedError)
logger = structlog.get_logger(__name__)
_ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[^\s:,/]+):[0-9]{1,5}$")


class KafkaEventLog:
    """Topics of a broker that speaks Kafka's protocol. Implements `feedback.event_log.EventLog`.

    Args:
        bootstrap: `host:port[,host:port]`.
        partitions: of a topic that has to be made.
        replication: of a topic that has to be made; -1 leaves it to the broker.

    Raises:
        EventLogError: `bootstrap` isn't an address.
    """

    def __init__(self, bootstrap: str, partitions: int = 3, replication: int = -1) -> None:
        self._servers = [server.strip() for server in bootstrap.split(",")]
        for server in self._servers:
            if not _ADDRESS.match(server):
                raise EventLogError(f"{server!r} is no broker address; give host:port, or several with commas between")
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._replication = replication
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()
        # The client logs each failed attempt; its errors come up to our callers, who log what matters.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)

    def ensure_topics(self, topics: Iterable[str]) -> frozenset[str]:
        """Create what is missing; see `EventLog.ensure_topics`.

        Raises:
            EventLogUnavailable: the broker doesn't answer.
            EventLogError: it refuses.
        """
        wanted = sorted(set(topics))
        with self._lock, _translated(self._bootstrap), _admin(self._servers) as admin:
            before = _topic_ids(admin, wanted)
            created = self._create(admin, [name for name in wanted if name not in before])
            if created:
                admin.wait_for_topics(created, timeout_ms=REQUEST_TIMEOUT_MS)
            after = _topic_ids(admin, wanted)
            renewed = {name for name in wanted if self._seen.get(name, after.get(name)) != after.get(name)}
            self._seen.update(after)
        return frozenset({*created, *renewed})

    def producer(self) -> EventProducer:
        """A writer; it connects with the first `send`."""
        return _Producer(self._bootstrap, self._servers)

    def consumer(self, topics: Sequence[str], group: str | None) -> EventConsumer:
        """A reader; it connects with the first `poll`."""
        return _Consumer(self._bootstrap, self._servers, topics, group)

    def check(self) -> None:
        """Raises:
        EventLogUnavailable: the broker does not answer.
        """
        with _translated(self._bootstrap), _admin(self._servers) as admin:
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


class _Producer:
    """Idempotent, acks=all; the client beneath is thrown away after any failure and made anew."""

    def __init__(self, bootstrap: str, servers: list[str]) -> None:
        self._bootstrap = bootstrap
        self._servers = servers
        self._client: Any = None
        self._lock = threading.Lock()

    def send(self, records: Sequence[OutgoingRecord]) -> list[EventLogError | None]:
        """Send a batch and wait; see `EventProducer.send`."""
        if not records:
            return []
        with self._lock:
            with _translated(self._bootstrap):
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
        connected = _connections(self._client._sender._client)
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
                outcomes.append(_as_ours(error, self._bootstrap))
        return outcomes

    def _connect(self) -> Any:
        return KafkaProducer(
            bootstrap_servers=self._servers,
            kafka_client=_client,
            bootstrap_timeout_ms=CONNECT_TIMEOUT_MS,
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


class _Consumer:
    """A member of a group, or (group None) a lone reader from the beginning; not for several threads at once."""

    def __init__(self, bootstrap: str, servers: list[str], topics: Sequence[str], group: str | None) -> None:
        self._bootstrap = bootstrap
        self._servers = servers
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
        with _translated(self._bootstrap):
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
        with _translated(self._bootstrap):
            mine = {(tp.topic, tp.partition) for tp in self._client.assignment()}
            offsets = {
                TopicPartition(*where): OffsetAndMetadata(offset, "", -1)
                for where, offset in self._next.items()
                if where in mine
            }
            if offsets:
                self._client.commit(offsets, timeout_ms=REQUEST_TIMEOUT_MS)

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet polled, by topic and partition; see `EventConsumer.lag`."""
        if self._client is None:
            return {}
        lags: dict[tuple[str, int], int] = {}
        with _translated(self._bootstrap):
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
        with _admin(self._servers) as admin:
            ids = _topic_ids(admin, self._topics)
            missing = [topic for topic in self._topics if topic not in ids]
            if missing:
                raise TopicsMissing(f"{self._bootstrap} has no topic {', '.join(missing)}; make it with ensure_topics")
            incarnation = _incarnation(admin, ids)
        self._volatile = bool(incarnation)
        detour = f".{self._detours}" if self._detours else ""
        self._client = KafkaConsumer(
            *self._topics,
            bootstrap_servers=self._servers,
            kafka_client=_client,
            bootstrap_timeout_ms=CONNECT_TIMEOUT_MS,
            group_id=self._group and self._group + incarnation + detour,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
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
        connections = _connections(self._client._client)
        if connections - self._connections:
            self._refresh_metadata()
            self._connections = connections
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
        self._unreachable_since = None if _connections(self._client._client) else self._unreachable_since or now
        if self._unreachable_since is not None and now - self._unreachable_since >= UNREACHABLE_AFTER_S:
            raise EventLogUnavailable(_unreachable(self._bootstrap, "no connection"))

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


def _client(**configs: Any) -> Any:
    """The client's network layer, told not to make topics on sight (the option doesn't reach it, see the module)."""
    client = KafkaNetClient(**configs)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


@contextmanager
def _admin(servers: list[str]) -> Iterator[Any]:
    admin = KafkaAdminClient(
        bootstrap_servers=servers,
        bootstrap_timeout_ms=CONNECT_TIMEOUT_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    try:
        yield admin
    finally:
        admin.close()


def _incarnation(admin: Any, ids: Mapping[str, str]) -> str:
    """What to add to a group's name: nothing, but on the embedded broker a mark of its run (its topics' ids are new).

    A member that outlived a restart joins the new broker's group before it knows, as a ghost that leads the group and
    never answers; the embedded broker waits for it for ever. It forgot the group anyway, so each run gets its own.
    """
    if not (admin._manager.cluster.cluster_id or "").startswith(VOLATILE_CLUSTER):
        return ""
    return f".{min(ids.values())[-12:]}"


def _connections(network: Any) -> frozenset[Any]:
    """The connections that stand. A broker that went and came again is seen by its new one."""
    return frozenset(conn for conn in network._manager._conns.values() if conn.connected)


def _stored(record: Any) -> StoredRecord:
    return StoredRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        timestamp_ms=record.timestamp,
    )


def _topic_ids(admin: Any, names: Sequence[str]) -> dict[str, str]:
    """Id of each topic that exists."""
    described = admin.describe_topics(list(names)) if names else []
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic["error_code"] == 0}


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


@contextmanager
def _translated(bootstrap: str) -> Iterator[None]:
    """Turn every error of the client into one of ours."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise _as_ours(error, bootstrap) from error
    except (OSError, RuntimeError) as error:
        # The client's network thread reports a lost broker with either.
        raise EventLogUnavailable(_unreachable(bootstrap, str(error))) from error


def _as_ours(error: Exception, bootstrap: str) -> EventLogError:
    detail = f"{type(error).__name__}: {str(error)[:300]}"
    if isinstance(error, _TOO_LARGE):
        return RecordTooLarge(f"{bootstrap} refuses the record, it is over {MAX_RECORD_BYTES:,} bytes ({detail})")
    if isinstance(error, _REBALANCED):
        return GroupRebalanced(f"{bootstrap}: another member of the group has the partitions now ({detail})")
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return TopicsMissing(f"{bootstrap} has no such topic; make it with ensure_topics ({detail})")
    if isinstance(error, _DENIED):
        return EventLogError(f"{bootstrap} denies access; check the broker's rights for this client ({detail})")
    if isinstance(error, (kafka_errors.KafkaConfigurationError, kafka_errors.InvalidReplicationFactorError)):
        return EventLogError(f"{bootstrap} refuses the settings; check feedback.replication and partitions ({detail})")
    return EventLogUnavailable(_unreachable(bootstrap, detail))


def _unreachable(bootstrap: str, detail: str) -> str:
    return f"the event log at {bootstrap} does not answer; is the broker running? Nothing is lost ({detail})"
