"""The brokers as their clients' callers see them: every client is made here, and its errors become ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from feedback.broker import VOLATILE_CLUSTER
from feedback.config import KafkaSecurity
from feedback.event_log import EventLogError, EventLogUnavailable, GroupRebalanced, RecordTooLarge, TopicsMissing
from feedback.kafka_log.network import Reasons, network
from feedback.kafka_log.refusals import explained
from feedback.kafka_security import SECTION, options

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Largest record; topics are made with this limit (a long conversation with four answers and their ids fits)."""
CONNECT_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 5_000
DELIVERY_TIMEOUT_MS = 10_000
CLOSE_TIMEOUT_MS = 2_000

_MEANINGS: tuple[tuple[tuple[type[Exception], ...], type[EventLogError], str], ...] = (
    (
        (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
        RecordTooLarge,
        f" refuses the record, it is over {MAX_RECORD_BYTES:,} bytes",
    ),
    (
        (
            kafka_errors.CommitFailedError,
            kafka_errors.IllegalGenerationError,
            kafka_errors.RebalanceInProgressError,
            kafka_errors.UnknownMemberIdError,
            kafka_errors.FencedInstanceIdError,
        ),
        GroupRebalanced,
        ": another member of the group has the partitions now",
    ),
    (
        (kafka_errors.UnknownTopicOrPartitionError,),
        TopicsMissing,
        " has no such topic; make it with ensure_topics",
    ),
    (
        (kafka_errors.AuthorizationError,),
        EventLogError,
        " denies access; check the broker's rights for this client",
    ),
    (
        (kafka_errors.KafkaConfigurationError, kafka_errors.InvalidReplicationFactorError),
        EventLogError,
        " refuses the settings; check feedback.replication and partitions",
    ),
)
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


class Brokers:
    """Where the brokers are, and how they are talked to.

    Args:
        bootstrap: `host:port[,host:port]`.
        security: TLS and login.

    Raises:
        EventLogError: `bootstrap` isn't an address.
    """

    def __init__(self, bootstrap: str, security: KafkaSecurity) -> None:
        self.bootstrap = bootstrap
        self._servers = addresses(bootstrap)
        self._security = security
        self._reasons = Reasons()
        # The client logs each failed attempt; its errors come up to our callers, who log what matters.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)

    def client(self, kind: Any, *topics: str, **settings: Any) -> Any:
        """A new client, connected; the caller closes it.

        Args:
            kind: `KafkaProducer`, `KafkaConsumer` or `KafkaAdminClient`.
            topics, settings: as that takes them.

        Raises:
            EventLogUnavailable: there is no connection to be had.
            EventLogError: TLS or login can't be used as set.
        """
        networks: list[Any] = []

        def made(**configs: Any) -> Any:
            networks.append(network(self._reasons, **configs))
            return networks[-1]

        shared = {"bootstrap_servers": self._servers, "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS, "kafka_client": made}
        secure = options(self._security)
        with self.translated():
            try:
                return kind(*topics, **shared, **secure, **settings)
            except BaseException:
                for left in networks:  # with a thread that would go on for ever
                    left.close()
                raise

    @contextmanager
    def admin(self) -> Iterator[Any]:
        """A client for topics, closed at the end; its errors are ours."""
        admin = self.client(KafkaAdminClient, request_timeout_ms=REQUEST_TIMEOUT_MS)
        with self.translated():
            try:
                yield admin
            finally:
                admin.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn every error of the client into one of ours."""
        try:
            yield
        except kafka_errors.KafkaError as error:
            raise self.as_ours(error) from error
        except (OSError, RuntimeError) as error:
            # The client's network thread reports a lost broker with either.
            raise self.unreachable(str(error)) from error

    def as_ours(self, error: Exception) -> EventLogError:
        """What an error of the client means to our callers."""
        detail = f"{type(error).__name__}: {str(error)[:300]}"
        for kinds, ours, told in _MEANINGS:
            if isinstance(error, kinds):
                return ours(f"{self.bootstrap}{told} ({detail})")
        return self.unreachable(detail, error)

    def unreachable(self, detail: str, error: BaseException | None = None) -> EventLogUnavailable:
        """What to say of a broker that does not answer, or refuses to talk with us."""
        for cause in (error, self._reasons.last):
            told = None if cause is None else explained(cause, self._security)
            if told is not None:
                return EventLogUnavailable(f"{self.bootstrap}: {told}. Nothing is lost ({str(cause)[:300]})")
        last, running = str(self._reasons.last or ""), "is the broker running"
        if last and last not in detail:
            detail = f"{detail}; {last}"
        if "disconnected" in last:  # as a listener for another protocol does, too
            running = f"{running}, and does its port speak {self._security.protocol} ({SECTION}.protocol)"
        return EventLogUnavailable(
            f"the event log at {self.bootstrap} does not answer; {running}? Nothing is lost ({detail})"
        )


def connections(network: Any) -> frozenset[Any]:
    """The connections that stand. A broker that went and came again is seen by its new one."""
    return frozenset(conn for conn in network._manager._conns.values() if conn.connected)


def topic_ids(admin: Any, names: Sequence[str]) -> dict[str, str]:
    """Id of each topic that exists."""
    described = admin.describe_topics(list(names)) if names else []
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic["error_code"] == 0}


def is_volatile(admin: Any) -> bool:
    """Whether it is the embedded broker, which keeps everything in its memory; after a first answer of the broker."""
    return (admin._manager.cluster.cluster_id or "").startswith(VOLATILE_CLUSTER)
