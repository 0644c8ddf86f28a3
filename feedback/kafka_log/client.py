"""What every talk with the client shares: time limits, connections, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from feedback.broker import VOLATILE_CLUSTER
from feedback.event_log import EventLogError, EventLogUnavailable, GroupRebalanced, RecordTooLarge, TopicsMissing

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Largest record; topics are made with this limit (a long conversation with four answers and their ids fits)."""
CONNECT_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 5_000
DELIVERY_TIMEOUT_MS = 10_000
CLOSE_TIMEOUT_MS = 2_000

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_REBALANCED = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.FencedInstanceIdError,
)
_DENIED = (kafka_errors.AuthorizationError, kafka_errors.SaslAuthenticationFailedError)


def quiet_client(**configs: Any) -> Any:
    """The client's network layer, told not to make topics on sight (the option doesn't reach it, see the package)."""
    client = KafkaNetClient(**configs)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


@contextmanager
def admin_client(servers: list[str]) -> Iterator[Any]:
    """A client for topics, closed at the end."""
    admin = KafkaAdminClient(
        bootstrap_servers=servers,
        bootstrap_timeout_ms=CONNECT_TIMEOUT_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    try:
        yield admin
    finally:
        admin.close()


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


@contextmanager
def translated(bootstrap: str) -> Iterator[None]:
    """Turn every error of the client into one of ours."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise as_ours(error, bootstrap) from error
    except (OSError, RuntimeError) as error:
        # The client's network thread reports a lost broker with either.
        raise EventLogUnavailable(unreachable(bootstrap, str(error))) from error


def as_ours(error: Exception, bootstrap: str) -> EventLogError:
    """What an error of the client means to our callers."""
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
    return EventLogUnavailable(unreachable(bootstrap, detail))


def unreachable(bootstrap: str, detail: str) -> str:
    """What to say of a broker that does not answer."""
    return f"the event log at {bootstrap} does not answer; is the broker running? Nothing is lost ({detail})"
