"""The event log as the rest of the system sees it: only `feedback.kafka_log` knows Kafka's client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Place = tuple[str, int]
"""A topic and one of its partitions."""


class EventLogError(Exception):
    """Base of the event log's failures; the message names the address and what to do."""


class EventLogUnavailable(EventLogError):
    """The broker can't be reached or doesn't answer; nothing was lost, try again later."""


class TopicsMissing(EventLogUnavailable):
    """A topic isn't there (a volatile broker was started again): `ensure_topics` makes it."""


class GroupRebalanced(EventLogUnavailable):
    """The group gave these partitions to another member: what was not committed will be read again, by it."""


class RecordTooLarge(EventLogError):
    """The broker refuses a record of this size; sending it again won't help."""


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """A record to send. Records with one key keep their order and land in one partition."""

    topic: str
    key: str
    value: bytes | None
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as the log holds it. `value` is None for a tombstone."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class EventProducer(Protocol):
    """Writes records; acknowledged means that the broker has them (acks=all, idempotent)."""

    def send(self, records: Sequence[OutgoingRecord]) -> list[EventLogError | None]:
        """Send a batch and wait; one entry a record in the same order, None where it was acknowledged.

        Where one record fails for the time being, those after it with the same key count as failed too: send both
        again, and readers see the key's records in order (some of them twice).

        Raises:
            EventLogUnavailable: the broker can't be reached at all; some of the batch may have arrived.
        """

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""


class EventConsumer(Protocol):
    """Reads topics as a member of a group, or (group None) alone and from the beginning."""

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        """The next records, or an empty list after `timeout_s`.

        Raises:
            TopicsMissing: a topic isn't there; make it with `ensure_topics` and poll again.
            EventLogUnavailable: the broker hasn't been reachable for some seconds; poll again later.
        """

    def commit(self) -> None:
        """Everything that `poll` has returned is dealt with. A no-op without a group.

        Raises:
            GroupRebalanced: another member has the partitions now.
            EventLogUnavailable: the broker did not take it; the records may be read again.
        """

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet polled, by topic and partition, from the consumer's own highwater."""

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""


class EventLog(Protocol):
    """A broker that speaks Kafka's protocol."""

    def ensure_topics(self, topics: Iterable[str]) -> frozenset[str]:
        """Create what is missing; returns the names that had to be made since this object last looked.

        A topic that had to be made again, by whomever, has lost what it held: the caller sends its record of it anew.
        """

    def producer(self) -> EventProducer:
        """A new producer; the caller closes it."""

    def consumer(self, topics: Sequence[str], group: str | None) -> EventConsumer:
        """A new consumer; the caller closes it. Group None reads alone and from the beginning."""

    def check(self) -> None:
        """Raises:
        EventLogUnavailable: the broker does not answer.
        """


class ErasableEventLog(EventLog, Protocol):
    """A broker's log out of which what was read can be taken."""

    def in_memory(self) -> bool:
        """Whether the broker keeps everything in its memory, and forgets it when it stops.

        Raises:
            EventLogUnavailable: the broker does not answer.
        """

    def renew(self, topics: Sequence[str]) -> None:
        """Make these topics of a broker `in_memory` anew, empty, as if it had been restarted.

        Raises:
            EventLogUnavailable: the broker does not answer.
        """

    def ends(self, topics: Sequence[str]) -> Mapping[Place, int]:
        """Where each partition that holds anything ends: the offset of its next record.

        Raises:
            EventLogUnavailable: the broker does not answer.
        """

    def erase(self, ends: Mapping[Place, int], read_by: str | None) -> bool:
        """Delete all records before these places for good, once a group (None: nobody) has committed that it read them.

        Returns:
            False where the group has not come so far; nothing was done.

        Raises:
            EventLogUnavailable: the broker does not answer.
            EventLogError: it refuses.
        """
