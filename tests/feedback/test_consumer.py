"""What a member of a group commits, against a client of Kafka that is told what to give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kafka import TopicPartition

from feedback.config import KafkaSecurity
from feedback.kafka_log.client import Brokers
from feedback.kafka_log.consumer import Consumer

ONE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


class Connection:
    connected = True


class Client:
    """Gives what lies in `fetched`; `offsets` is what the group has committed."""

    def __init__(self) -> None:
        self.fetched: dict[TopicPartition, list[Any]] = {}
        self.mine: set[TopicPartition] = set()
        self.offsets: dict[TopicPartition, int] = {}
        self._client = SimpleNamespace(_manager=SimpleNamespace(_conns={0: Connection()}))
        self._cluster = SimpleNamespace(request_update=lambda: SimpleNamespace(add_both=lambda told: told(None)))

    def poll(self, _timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        fetched, self.fetched = self.fetched, {}
        return fetched

    def assignment(self) -> set[TopicPartition]:
        return self.mine

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self.offsets.update({where: found.offset for where, found in offsets.items()})


def record(where: TopicPartition, offset: int) -> Any:
    return SimpleNamespace(
        topic=where.topic, partition=where.partition, offset=offset, key=b"k", value=b"v", timestamp=1
    )


def test_a_partition_that_comes_back_from_another_member_is_not_set_back() -> None:
    """What had been committed twice would be read again, and a forgotten voter's records wait in the log for ever."""
    client, consumer = Client(), Consumer(Brokers("nowhere:1", KafkaSecurity()), [], "group")
    consumer._client = client
    client.mine = {ONE, OTHER}
    client.fetched = {ONE: [record(ONE, 9)], OTHER: [record(OTHER, 9)]}
    assert len(consumer.poll(0)) == 2
    consumer.commit()
    assert client.offsets == {ONE: 10, OTHER: 10}
    client.offsets[OTHER] = 50  # another member had it for a while, and has gone again
    client.fetched = {ONE: [record(ONE, 10)]}
    consumer.poll(0)
    consumer.commit()
    assert client.offsets == {ONE: 11, OTHER: 50}
