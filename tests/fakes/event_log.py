"""An event log in memory, with switches for what goes wrong with real ones."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from feedback.event_log import EventLogError, EventLogUnavailable, OutgoingRecord, RecordTooLarge, StoredRecord


class FakeEventLog:
    """Topics of append-only partitions behind one condition.

    Attributes:
        down: every call raises EventLogUnavailable while True.
        max_record_bytes: larger values are refused.
        send_faults: errors by event id, each used once: the record is refused with it.
        ensured: how often ensure_topics answered.
        memory: it is a broker that keeps everything in its memory.
        renewed, erased: how often that was done.
    """

    def __init__(self, partitions: int = 3, max_record_bytes: int = 1_000_000) -> None:
        self.partitions = partitions
        self.max_record_bytes = max_record_bytes
        self.down = False
        self.send_faults: dict[str, EventLogError] = {}
        self.ensured = 0
        self.memory = False
        self.renewed = 0
        self.erased = 0
        self.changed = threading.Condition()
        self._seen: dict[str, list[list[StoredRecord]]] = {}
        self._topics: dict[str, list[list[StoredRecord]]] = {}
        self._committed: dict[tuple[str, str, int], int] = {}
        self._members: dict[str, list[FakeConsumer]] = {}
        self._lives = 0
        self._begins: dict[tuple[str, int], int] = {}

    def check(self) -> None:
        if self.down:
            raise EventLogUnavailable("the fake broker is down; set down = False")

    def ensure_topics(self, topics: Iterable[str]) -> frozenset[str]:
        with self.changed:
            self.check()
            self.make_as_somebody_else(topics)
            renewed = frozenset(topic for topic in topics if self._seen.get(topic) is not self._topics[topic])
            self._seen.update({topic: self._topics[topic] for topic in renewed})
            self.ensured += 1
            return renewed

    def make_as_somebody_else(self, topics: Iterable[str]) -> None:
        """Create what is missing, as another process does; our next `ensure_topics` finds that they are new."""
        with self.changed:
            for topic in topics:
                self._topics.setdefault(topic, [[] for _ in range(self.partitions)])
            self.changed.notify_all()

    def producer(self) -> FakeProducer:
        self.check()
        return FakeProducer(self)

    def consumer(self, topics: Sequence[str], group: str | None) -> FakeConsumer:
        self.check()
        return FakeConsumer(self, topics, group)

    def forget(self) -> None:
        """Lose everything, as a broker that keeps its log in memory does when it is killed."""
        with self.changed:
            self._topics.clear()
            self._committed.clear()
            self._begins.clear()
            self._lives += 1
            self.changed.notify_all()

    def in_memory(self) -> bool:
        self.check()
        return self.memory

    def renew(self, topics: Sequence[str]) -> None:
        with self.changed:
            self.check()
            assert self.memory
            self.renewed += 1
            for where in [(topic, n) for topic in topics for n in range(self.partitions)]:
                self._begins.pop(where, None)
                for group, topic, number in [*self._committed]:
                    if (topic, number) == where:
                        del self._committed[group, topic, number]
            self._topics.update({topic: [[] for _ in range(self.partitions)] for topic in topics})
            self._lives += 1
            self.changed.notify_all()

    def ends(self, topics: Sequence[str]) -> Mapping[tuple[str, int], int]:
        with self.changed:
            self.check()
            ends = {(topic, n): len(held) for topic in topics for n, held in enumerate(self._topics.get(topic, []))}
            return {where: end for where, end in ends.items() if end > self._begins.get(where, 0)}

    def erase(self, ends: Mapping[tuple[str, int], int], read_by: str | None) -> bool:
        with self.changed:
            self.check()
            if read_by and any(self._committed.get((read_by, *where), 0) < end for where, end in ends.items()):
                return False
            self._begins.update(ends)
            self.erased += 1
            self.changed.notify_all()
            return True

    def records(self, topic: str) -> list[StoredRecord]:
        """What a topic holds, partition by partition."""
        with self.changed:
            partitions = enumerate(self._topics.get(topic, []))
            return [record for n, held in partitions for record in held[self._begins.get((topic, n), 0) :]]

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Wait until `predicate()` is true after some change of the log."""
        with self.changed:
            return bool(self.changed.wait_for(predicate, timeout_s))

    def _append(self, record: OutgoingRecord) -> EventLogError | None:
        if fault := self.send_faults.pop(record.event_id, None):
            return fault
        if record.value is not None and len(record.value) > self.max_record_bytes:
            return RecordTooLarge(f"{len(record.value)} bytes are more than {self.max_record_bytes}")
        if record.topic not in self._topics:
            return EventLogUnavailable(f"there is no topic {record.topic}; call ensure_topics")
        key = record.key.encode()
        number = zlib.crc32(key) % self.partitions
        partition = self._topics[record.topic][number]
        partition.append(
            StoredRecord(record.topic, number, len(partition), key, record.value, time.time_ns() // 1_000_000)
        )
        return None


class FakeProducer:
    def __init__(self, log: FakeEventLog) -> None:
        self._log = log
        self.closed = False

    def send(self, records: Sequence[OutgoingRecord]) -> list[EventLogError | None]:
        with self._log.changed:
            self._log.check()
            results = [self._log._append(record) for record in records]
            self._log.changed.notify_all()
            return results

    def close(self) -> None:
        self.closed = True


class FakeConsumer:
    """Members of one group share the partitions of each topic; one that leaves hands back what it hasn't committed."""

    def __init__(self, log: FakeEventLog, topics: Sequence[str], group: str | None) -> None:
        self._log = log
        self._topics = tuple(topics)
        self._group = group
        self._positions: dict[tuple[str, int], int] = {}
        self._life = log._lives
        with log.changed:
            if group is not None:
                log._members.setdefault(group, []).append(self)
                self._rebalance()

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        with self._log.changed:
            self._log.check()
            self._log.changed.wait_for(lambda: self._log.down or any(self._waiting()), timeout_s)
            self._log.check()
            taken: list[StoredRecord] = []
            for record in self._waiting():
                if len(taken) == max_records:
                    break
                taken.append(record)
                self._positions[record.topic, record.partition] = record.offset + 1
            return taken

    def commit(self) -> None:
        with self._log.changed:
            self._log.check()
            if self._group is None:
                return
            for (topic, partition), position in self._positions.items():
                self._log._committed[self._group, topic, partition] = position

    def lag(self) -> Mapping[tuple[str, int], int]:
        with self._log.changed:
            return {
                (topic, number): len(self._log._topics[topic][number]) - self._position(topic, number)
                for topic, number in self._assigned()
            }

    def close(self) -> None:
        with self._log.changed:
            members = self._log._members.get(self._group or "", [])
            if self in members:
                members.remove(self)
                self._rebalance()

    def _waiting(self) -> Iterator[StoredRecord]:
        for topic, number in self._assigned():
            yield from self._log._topics[topic][number][self._position(topic, number) :]

    def _assigned(self) -> list[tuple[str, int]]:
        every = [
            (topic, n) for topic in self._topics if topic in self._log._topics for n in range(self._log.partitions)
        ]
        if self._group is None:
            return every
        members = self._log._members.get(self._group, [])
        return [p for i, p in enumerate(every) if members and members[i % len(members)] is self]

    def _position(self, topic: str, number: int) -> int:
        if self._life != self._log._lives:
            # Positions in a log that has been forgotten mean nothing in the new one, however long it is: begin again.
            self._positions.clear()
            self._life = self._log._lives
        committed = self._log._committed.get((self._group or "", topic, number), 0)
        return max(self._positions.get((topic, number), committed), self._log._begins.get((topic, number), 0))

    def _rebalance(self) -> None:
        for member in self._log._members.get(self._group or "", []):
            member._positions.clear()
