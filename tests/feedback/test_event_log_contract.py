"""What every event log keeps: the fake of the unit tests, the embedded broker and Apache Kafka alike."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest

from feedback.event_log import (
    EventConsumer,
    EventLogUnavailable,
    EventProducer,
    OutgoingRecord,
    RecordTooLarge,
    StoredRecord,
)
from tests.feedback.brokers import ApacheKafka, Broker, Embedded


def outgoing(topic: str, keys: int, each: int, tag: str = "") -> list[OutgoingRecord]:
    return [OutgoingRecord(topic, f"k{key}", f"{tag}{key}:{n}".encode()) for n in range(each) for key in range(keys)]


def read(consumer: EventConsumer, count: int, timeout_s: float = 40.0) -> list[StoredRecord]:
    """Poll until `count` records are there; what the broker can't give for now is waited for."""
    records: list[StoredRecord] = []
    deadline = time.monotonic() + timeout_s
    while len(records) < count and time.monotonic() < deadline:
        try:
            records += consumer.poll(0.3)
        except EventLogUnavailable:
            time.sleep(0.1)  # the broker is away, and tells nobody when it is back: bounded by timeout_s
    return records


def send_until_taken(producer: EventProducer, records: Sequence[OutgoingRecord], timeout_s: float = 40.0) -> None:
    """Send as the relay does: what failed for now goes again."""
    deadline = time.monotonic() + timeout_s
    left = list(records)
    while left:
        assert time.monotonic() < deadline, "the broker takes nothing"
        try:
            outcomes = producer.send(left)
        except EventLogUnavailable:
            continue
        left = [record for record, error in zip(left, outcomes, strict=True) if error is not None]


def by_key(records: Sequence[StoredRecord]) -> dict[bytes | None, list[bytes | None]]:
    keys: dict[bytes | None, list[bytes | None]] = {}
    for record in sorted(records, key=lambda r: (r.partition, r.offset)):
        keys.setdefault(record.key, []).append(record.value)
    return keys


def seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(EventLogUnavailable):
        action()
    return time.monotonic() - began


def test_topics_are_made_once_and_named(broker: Broker, unique: str) -> None:
    log = broker.log()
    assert log.ensure_topics([unique, f"{unique}b"]) == {unique, f"{unique}b"}
    assert log.ensure_topics([unique, f"{unique}b"]) == frozenset()
    assert broker.log().ensure_topics([unique]) == frozenset()


def test_a_key_keeps_its_order_and_its_partition(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer, closing(log.consumer([unique], None)) as consumer:
        for start in range(0, 30, 10):
            assert producer.send(outgoing(unique, 5, 10, f"{start}/")) == [None] * 50
        records = read(consumer, 150)
    expected = {f"k{k}".encode(): [f"{s}/{k}:{n}".encode() for s in (0, 10, 20) for n in range(10)] for k in range(5)}
    assert by_key(records) == expected
    assert len({(record.key, record.partition) for record in records}) == 5
    assert all(record.topic == unique and record.timestamp_ms > 1_700_000_000_000 for record in records)


def test_a_lone_reader_begins_at_the_beginning_and_sees_what_comes(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer:
        producer.send(outgoing(unique, 2, 2))
        for _ in range(2):
            with closing(log.consumer([unique], None)) as consumer:
                assert len(read(consumer, 4)) == 4
        with closing(log.consumer([unique], None)) as consumer:
            read(consumer, 4)
            producer.send(outgoing(unique, 1, 1, "late "))
            assert [record.value for record in read(consumer, 1)] == [b"late 0:0"]


def test_lag_is_what_has_not_been_polled(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer, closing(log.consumer([unique], None)) as consumer:
        producer.send(outgoing(unique, 1, 50))
        taken = 0
        while not taken:
            taken = len(consumer.poll(0.5, max_records=20))
        assert sum(consumer.lag().values()) == 50 - taken
        read(consumer, 50 - taken)
        assert sum(consumer.lag().values()) == 0


def test_a_poll_gives_no_more_than_asked(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer, closing(log.consumer([unique], None)) as consumer:
        producer.send(outgoing(unique, 3, 10))
        sizes = []
        while sum(sizes) < 30:
            sizes.append(len(consumer.poll(0.5, max_records=7)))
    assert max(sizes) <= 7


def test_a_group_resumes_where_it_committed(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer:
        producer.send(outgoing(unique, 3, 4, "first "))
        with closing(log.consumer([unique], unique)) as consumer:
            assert len(read(consumer, 12)) == 12
            consumer.commit()
            producer.send(outgoing(unique, 3, 1, "uncommitted "))
            assert len(read(consumer, 3)) == 3
        with closing(log.consumer([unique], unique)) as consumer:
            again = read(consumer, 3)
            assert sorted(record.value or b"" for record in again) == [f"uncommitted {k}:0".encode() for k in range(3)]
            assert consumer.poll(0.3) == []


def test_a_large_record_passes_and_a_larger_one_is_refused_alone(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    large = os.urandom(3_500_000)
    with closing(log.producer()) as producer, closing(log.consumer([unique], None)) as consumer:
        outcomes = producer.send(
            [
                OutgoingRecord(unique, "k", b"before"),
                OutgoingRecord(unique, "k", os.urandom(4_500_000)),
                OutgoingRecord(unique, "k", large),
            ]
        )
        assert outcomes[0] is None
        assert isinstance(outcomes[1], RecordTooLarge)
        assert outcomes[2] is None
        assert [record.value for record in read(consumer, 2)] == [b"before", large]


def test_tombstones_and_any_bytes_come_back_as_sent(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    values = [None, b"", bytes(range(256)) * 500]
    with closing(log.producer()) as producer, closing(log.consumer([unique], None)) as consumer:
        assert producer.send([OutgoingRecord(unique, "clé", value) for value in values]) == [None] * 3
        records = read(consumer, 3)
    assert [record.value for record in records] == values
    assert {record.key for record in records} == {"clé".encode()}


def test_a_record_for_a_missing_topic_fails_and_makes_no_topic(broker: Broker, unique: str) -> None:
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer:
        outcomes = producer.send([OutgoingRecord(f"{unique}no", "k", b"x"), OutgoingRecord(unique, "k", b"x")])
    assert isinstance(outcomes[0], EventLogUnavailable)
    assert outcomes[1] is None
    assert log.ensure_topics([f"{unique}no"]) == {f"{unique}no"}


def test_a_dead_broker_is_told_within_bounded_time_and_everybody_goes_on_after(broker: Broker, unique: str) -> None:
    """Writer, reader and admin, each connected before the broker was killed (kill -9)."""
    log = broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer, closing(log.consumer([unique], None)) as consumer:
        send_until_taken(producer, outgoing(unique, 3, 5, "before "))
        before = read(consumer, 15)
        broker.kill()
        try:
            assert seconds(log.check) < 8
            assert seconds(lambda: log.ensure_topics([unique])) < 8
            assert seconds(lambda: producer.send(outgoing(unique, 1, 1))) < 20
            assert seconds(lambda: [consumer.poll(0.5) for _ in range(40)]) < 25
        finally:
            broker.start()
        _await_answer(log)
        assert log.ensure_topics([unique]) == (frozenset({unique}) if broker.forgets else frozenset())
        send_until_taken(producer, outgoing(unique, 3, 20, "after "))
        after = _read_values(consumer, {f"after {k}:{n}".encode() for k in range(3) for n in range(20)})
    assert len(before) == 15
    keys = by_key(after)
    assert keys == {f"k{k}".encode(): [f"after {k}:{n}".encode() for n in range(20)] for k in range(3)}
    if not broker.forgets:
        with closing(log.consumer([unique], None)) as fresh:
            kept = read(fresh, 75)
        assert len([record for record in kept if (record.value or b"").startswith(b"before")]) == 15


@pytest.mark.slow
def test_a_log_that_was_replaced_between_two_polls_is_read_from_its_beginning(
    embedded_broker: Embedded, unique: str
) -> None:
    """The new log is longer than the old position: reading on would skip its first records without a word."""
    log = embedded_broker.log()
    log.ensure_topics([unique])
    with closing(log.consumer([unique], None)) as consumer:
        with closing(log.producer()) as producer:
            send_until_taken(producer, outgoing(unique, 3, 5, "old "))
        assert len(read(consumer, 15)) == 15
        embedded_broker.kill()
        embedded_broker.start()
        log.ensure_topics([unique])
        with closing(log.producer()) as producer:
            send_until_taken(producer, outgoing(unique, 3, 30, "new "))
        new = read(consumer, 90)
    assert {record.value for record in new} == {f"new {k}:{n}".encode() for k in range(3) for n in range(30)}


@pytest.mark.slow
def test_topics_made_again_by_another_are_told_to_everyone(embedded_broker: Embedded, unique: str) -> None:
    relay, curator = embedded_broker.log(), embedded_broker.log()
    relay.ensure_topics([unique])
    curator.ensure_topics([unique])
    embedded_broker.kill()
    embedded_broker.start()
    assert curator.ensure_topics([unique]) == {unique}
    assert relay.ensure_topics([unique]) == {unique}
    assert relay.ensure_topics([unique]) == frozenset()


def test_a_killed_members_records_go_to_the_others(real_broker: Embedded | ApacheKafka, unique: str) -> None:
    log = real_broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer:
        send_until_taken(producer, outgoing(unique, 6, 5))
    command = [sys.executable, "-m", "tests.feedback.member", real_broker.address, unique, unique]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as member:
        assert member.stdout is not None
        for _ in range(30):
            assert member.stdout.readline()
        member.kill()
    with closing(log.consumer([unique], unique)) as consumer:
        records = read(consumer, 30, timeout_s=60)
        consumer.commit()
    assert sorted(record.value or b"" for record in records) == sorted(r.value or b"" for r in outgoing(unique, 6, 5))


def test_two_members_share_and_one_takes_over(real_broker: Embedded | ApacheKafka, unique: str) -> None:
    """The takeover reads nothing twice that was committed, and loses nothing."""
    log = real_broker.log()
    log.ensure_topics([unique])
    seen: list[bytes | None] = []
    with closing(log.producer()) as producer, closing(log.consumer([unique], unique)) as stays:
        with closing(log.consumer([unique], unique)) as leaves:
            deadline = time.monotonic() + 60
            sent = 0
            while not (stays.lag() and leaves.lag()) or sent < 60:
                assert time.monotonic() < deadline, "the group never shared the partitions"
                send_until_taken(producer, outgoing(unique, 6, 1, f"{sent}/"))
                sent += 6
                seen += _poll_and_commit(stays) + _poll_and_commit(leaves)
        expected = {f"{start}/{k}:0".encode() for start in range(0, sent, 6) for k in range(6)}
        deadline = time.monotonic() + 60
        while not expected <= set(seen) and time.monotonic() < deadline:
            seen += _poll_and_commit(stays)
    assert set(seen) == expected


def _poll_and_commit(consumer: EventConsumer) -> list[bytes | None]:
    try:
        records = consumer.poll(0.2)
        consumer.commit()
    except EventLogUnavailable:
        return []
    return [record.value for record in records]


def _await_answer(log: object) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            log.check()  # type: ignore[attr-defined]
        except EventLogUnavailable:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the broker did not come back")


def _read_values(consumer: EventConsumer, wanted: set[bytes], timeout_s: float = 60.0) -> list[StoredRecord]:
    """Records with the wanted values, each value once (a record may have arrived twice)."""
    found: dict[bytes, StoredRecord] = {}
    deadline = time.monotonic() + timeout_s
    while set(found) != wanted and time.monotonic() < deadline:
        for record in read(consumer, 1, timeout_s=1.0):
            if record.value in wanted:
                found.setdefault(record.value, record)
    assert set(found) == wanted
    return list(found.values())


@pytest.mark.slow
def test_a_group_that_waits_for_a_member_gone_in_its_join_is_left_for_another(
    embedded_broker: Embedded, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "feedback.kafka_log.consumer.STUCK_JOIN_S", 6.0
    )  # a join takes 3 to 5 s, a gone member's time-out 11
    log = embedded_broker.log()
    log.ensure_topics([unique])
    with closing(log.producer()) as producer:
        assert producer.send([OutgoingRecord(unique, "k", b"1")]) == [None]
    with closing(log.consumer([unique], unique)) as gone:
        gone.poll(0.1)
    deadline = time.monotonic() + 60
    with closing(log.consumer([unique], unique)) as reader:
        seen: list[StoredRecord] = []
        while not seen:
            assert time.monotonic() < deadline, "the group stayed stuck"
            seen = reader.poll(0.5)
        reader.commit()
        assert [record.value for record in seen] == [b"1"]
        assert reader._detours >= 1  # type: ignore[attr-defined]
