"""The event log in a process of its own: what the other end is asked, and what happens when that end is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from feedback.config import KafkaSecurity
from feedback.event_log import (
    EventLogError,
    EventLogUnavailable,
    GroupRebalanced,
    OutgoingRecord,
    RecordTooLarge,
    TopicsMissing,
)
from feedback.kafka_log import KafkaApart
from feedback.kafka_security import SecurityUnusable
from tests.fakes.event_log import FakeEventLog
from tests.feedback.brokers import OtherEnds


@pytest.fixture
def fake() -> FakeEventLog:
    return FakeEventLog()


@pytest.fixture
def ends(fake: FakeEventLog) -> Iterator[OtherEnds]:
    made = OtherEnds(fake)
    yield made
    made.end_all()


@pytest.fixture
def apart(ends: OtherEnds) -> KafkaApart:
    return KafkaApart("127.0.0.1:9", 2, 1, process="serve", start=ends.start)


def test_nothing_is_started_before_the_first_call_and_one_process_serves_all(
    apart: KafkaApart, ends: OtherEnds
) -> None:
    assert ends.told == []
    assert apart.ensure_topics(["t"]) == {"t"}
    assert apart.ensure_topics(["t"]) == frozenset()
    apart.check()
    (told,) = ends.told
    assert KafkaSecurity.model_validate(told.pop("security")) == KafkaSecurity()
    assert told == {"bootstrap": "127.0.0.1:9", "partitions": 2, "replication": 1, "process": "serve", "seen": {}}


def test_records_come_back_as_sent_empty_ones_and_tombstones_too(apart: KafkaApart) -> None:
    apart.ensure_topics(["t"])
    values = [b"", None, bytes(range(256)), b"x" * 500_000]
    producer = apart.producer()
    assert producer.send([OutgoingRecord("t", "k", value, str(at)) for at, value in enumerate(values)]) == [None] * 4
    records = apart.consumer(["t"], None).poll(1.0)
    assert [record.value for record in records] == values
    assert {(record.topic, record.key) for record in records} == {("t", b"k")}
    assert [record.offset for record in records] == [0, 1, 2, 3]
    assert {record.partition for record in records} <= {0, 1, 2}
    assert all(record.timestamp_ms > 0 for record in records)


def test_a_refused_record_is_told_in_its_place(apart: KafkaApart, fake: FakeEventLog) -> None:
    apart.ensure_topics(["t"])
    fake.send_faults["second"] = RecordTooLarge("4,522 bytes are more than 10")
    outcomes = apart.producer().send([OutgoingRecord("t", "k", b"v", name) for name in ("first", "second", "third")])
    assert [type(outcome) for outcome in outcomes] == [type(None), RecordTooLarge, type(None)]
    assert str(outcomes[1]) == "4,522 bytes are more than 10"


def test_members_of_a_group_commit_and_know_their_lag(apart: KafkaApart) -> None:
    apart.ensure_topics(["t"])
    apart.producer().send([OutgoingRecord("t", "k", b"v") for _ in range(3)])
    member = apart.consumer(["t"], "group")
    assert sum(member.lag().values()) == 3
    assert len(member.poll(1.0, max_records=2)) == 2
    member.commit()
    member.close()
    member.close()
    assert [record.offset for record in apart.consumer(["t"], "group").poll(1.0)] == [2]


@pytest.mark.parametrize("kind", [EventLogError, EventLogUnavailable, TopicsMissing, GroupRebalanced, RecordTooLarge])
def test_every_error_arrives_as_what_it_is(
    kind: type[EventLogError], apart: KafkaApart, fake: FakeEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise kind("as it was said")

    monkeypatch.setattr(fake, "check", refuse)
    with pytest.raises(EventLogError, match="as it was said") as caught:
        apart.check()
    assert type(caught.value) is kind


def test_an_error_of_a_kind_that_only_the_other_end_knows_arrives_as_the_next_wider_one(
    apart: KafkaApart, fake: FakeEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise SecurityUnusable("the password's file is gone")

    monkeypatch.setattr(fake, "check", refuse)
    with pytest.raises(EventLogError, match="the password's file is gone") as caught:
        apart.check()
    assert type(caught.value) is EventLogError


def test_when_the_process_is_gone_its_clients_are_and_the_next_call_starts_another(
    apart: KafkaApart, ends: OtherEnds, fake: FakeEventLog
) -> None:
    apart.ensure_topics(["t"])
    producer = apart.producer()
    ends.kill(0)
    with pytest.raises(EventLogUnavailable, match=r"gone \(exit status 9.*another one is started"):
        producer.send([OutgoingRecord("t", "k", b"v")])
    with pytest.raises(EventLogUnavailable, match="make new clients"):
        producer.send([OutgoingRecord("t", "k", b"v")])
    producer.close()
    # The next one is told what the last one knew, so that it sees whether a topic was made again in between.
    apart.check()
    assert [settings["seen"] for settings in ends.told] == [{}, {"t": "id-1"}]
    with pytest.raises(EventLogUnavailable, match="make new clients"):
        producer.send([OutgoingRecord("t", "k", b"v")])
    assert apart.producer().send([OutgoingRecord("t", "k", b"v")]) == [None]
    assert len(fake.records("t")) == 1


def test_an_answer_is_not_waited_for_for_ever(
    apart: KafkaApart, ends: OtherEnds, fake: FakeEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart.check()
    waiting = threading.Event()
    monkeypatch.setattr(fake, "check", lambda: waiting.wait(10))
    monkeypatch.setattr("feedback.kafka_log.apart.CALL_S", 0.01)
    with pytest.raises(EventLogUnavailable, match="no answer within 0 s"):
        apart.check()
    waiting.set()


def test_what_is_no_address_is_refused_at_once() -> None:
    with pytest.raises(EventLogError, match="give host:port"):
        KafkaApart("nonsense")
