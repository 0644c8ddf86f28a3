"""What the curators have is taken out of the event log: forgotten voters' records, and what fills a broker's memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import (
    DEAD_LETTER_TOPIC,
    FORGOTTEN_TOPIC,
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    THUMB_TOPIC,
    TOPICS,
    VOTE_TOPIC,
    VoterForgotten,
)
from feedback.curator import GROUP, LAG, Curator
from feedback.dataset import Dataset
from feedback.erasing import IN_FLIGHT_S, UNERASED, Eraser
from feedback.event_log import EventConsumer, EventLogError, OutgoingRecord
from feedback.ledger import Ledger
from feedback.relay import Relay
from tests.fakes.event_log import FakeEventLog
from tests.feedback.events import START, pair, thumb, vote
from tests.feedback.test_forgetting import EVENT, VOTER

QUICK = FeedbackConfig(curate_linger_s=0.0)
PEOPLES = (PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC, DEAD_LETTER_TOPIC)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def sent(log: FakeEventLog, *records: tuple[str, bytes]) -> None:
    errors = log.producer().send([OutgoingRecord(topic, "k", value) for topic, value in records])
    assert not any(errors)


def voters(log: FakeEventLog) -> bytes:
    return b"".join(record.value or b"" for topic in PEOPLES for record in log.records(topic))


def asked(dataset: Dataset) -> float:
    """When the oldest mark was made."""
    return min(dataset.unerased().values())


@pytest.fixture
def log() -> FakeEventLog:
    made = FakeEventLog()
    made.ensure_topics(TOPICS)
    return made


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "dataset")


def commit_all(log: FakeEventLog) -> None:
    """As curators do who have stored everything there is."""
    consumer = log.consumer([PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC, FORGOTTEN_TOPIC], GROUP)
    while consumer.poll(0.0):
        pass
    consumer.commit()
    consumer.close()


def test_records_of_a_forgotten_voter_go_from_kafka_when_they_are_read(log: FakeEventLog, dataset: Dataset) -> None:
    sent(log, (PAIR_TOPIC, pair(1).to_bytes()), (VOTE_TOPIC, vote(1).to_bytes()), (THUMB_TOPIC, thumb(1).to_bytes()))
    sent(log, (DEAD_LETTER_TOPIC, b"v_1 in a wreck"))
    dataset.forget(EVENT)
    clock, wall = Clock(), Clock()
    wall.now = asked(dataset) + IN_FLIGHT_S + 1
    eraser = Eraser(log, dataset, QUICK, GROUP, clock=clock, wall=wall)
    eraser.look()
    assert VOTER.encode() in voters(log)  # nobody has read them yet
    sent(log, (VOTE_TOPIC, vote(2).to_bytes()))
    commit_all(log)
    sent(log, (VOTE_TOPIC, vote(5).to_bytes()))
    clock.now += 100
    eraser.look()
    assert VOTER.encode() not in voters(log)
    assert vote(2).to_bytes() in voters(log)  # it came after, and stays
    assert vote(5).to_bytes() in voters(log)
    assert dataset.unerased() == {}
    assert dataset.is_erased(VOTER)


def test_it_waits_for_what_a_relay_may_still_be_sending(log: FakeEventLog, dataset: Dataset) -> None:
    dataset.forget(EVENT)
    clock, wall = Clock(), Clock()
    wall.now = asked(dataset) + IN_FLIGHT_S - 1
    eraser = Eraser(log, dataset, QUICK, GROUP, clock=clock, wall=wall)
    eraser.look()
    assert (log.erased, UNERASED._value.get()) == (0, 1)
    sent(log, (VOTE_TOPIC, vote(1).to_bytes()))
    commit_all(log)
    clock.now, wall.now = clock.now + 100, wall.now + 2
    eraser.look()
    assert VOTER.encode() not in voters(log)
    assert UNERASED._value.get() == 0


def test_one_who_is_forgotten_meanwhile_waits_for_the_next_time(log: FakeEventLog, dataset: Dataset) -> None:
    dataset.forget(EVENT)
    clock, wall = Clock(), Clock()
    wall.now = asked(dataset) + IN_FLIGHT_S + 1
    sent(log, (VOTE_TOPIC, vote(1).to_bytes()))
    eraser = Eraser(log, dataset, QUICK, GROUP, clock=clock, wall=wall)
    eraser.look()  # it has looked how far the records go
    dataset.forget(EVENT.model_copy(update={"event_id": "f2", "voter": "v_2"}))
    commit_all(log)
    clock.now += 100
    eraser.look()
    assert (dataset.is_erased(VOTER), dataset.is_erased("v_2")) == (True, False)


def test_a_tombstone_that_is_sent_again_erases_nothing_more(log: FakeEventLog, dataset: Dataset) -> None:
    """A replay brings them all, and means the topics to be full again."""
    dataset.forget(EVENT)
    dataset.erased(dataset.unerased())
    dataset.forget(EVENT)
    Dataset(dataset.root).forget(EVENT)
    assert dataset.unerased() == {}
    dataset.forget(EVENT.model_copy(update={"event_id": "f2", "until": START + timedelta(days=1)}))
    assert len(dataset.unerased()) == 1  # they had come back, and are forgotten again


def test_it_can_be_left_to_the_topics_retention(log: FakeEventLog, dataset: Dataset) -> None:
    sent(log, (VOTE_TOPIC, vote(1).to_bytes()))
    commit_all(log)
    dataset.forget(EVENT)
    wall = Clock()
    wall.now = asked(dataset) + IN_FLIGHT_S + 1
    Eraser(log, dataset, FeedbackConfig(erase=False), GROUP, wall=wall).look()
    assert vote(1).to_bytes() in voters(log)


def test_a_broker_that_refuses_holds_nobody_up_and_is_asked_again(
    log: FakeEventLog, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(log, (VOTE_TOPIC, vote(1).to_bytes()))
    commit_all(log)
    dataset.forget(EVENT)
    clock, wall = Clock(), Clock()
    wall.now = asked(dataset) + IN_FLIGHT_S + 1
    eraser = Eraser(log, dataset, QUICK, GROUP, clock=clock, wall=wall)

    def denied(ends: object, read_by: object) -> bool:
        raise EventLogError("denied")

    with monkeypatch.context() as patch:
        patch.setattr(log, "erase", denied)
        eraser.look()
    assert not dataset.is_erased(VOTER)
    eraser.look()  # it is too soon
    assert not dataset.is_erased(VOTER)
    clock.now += 100
    eraser.look()
    assert dataset.is_erased(VOTER)


@contextmanager
def curating(log: FakeEventLog, dataset: Dataset, config: FeedbackConfig) -> Iterator[Curator]:
    stop = threading.Event()
    curator = Curator(log, dataset, config)
    thread = threading.Thread(target=curator.run, args=(stop,))
    thread.start()
    try:
        yield curator
    finally:
        stop.set()
        thread.join(20)


def test_a_broker_that_keeps_all_in_memory_is_emptied_and_nothing_is_lost(
    log: FakeEventLog, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relay and curator go on over the renewed topics; what was under way comes again."""
    monkeypatch.setattr("feedback.erasing.LOOK_S", 0.3)
    monkeypatch.setattr("feedback.relay.TOPICS_CHECK_S", 0.05)
    log.memory = True
    config = FeedbackConfig(curate_linger_s=0.0, broker_holds_mb=1, relay_idle_s=0.05)
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    relay = Relay(ledger, log, config)
    relay.start()

    def settled() -> bool:
        stats = ledger.outbox_stats()
        return stats.pending + stats.unconfirmed == 0

    try:
        with curating(log, dataset, config):
            for number in range(24):
                shown = pair(number)
                left = shown.completions[0].model_copy(update={"text": "x" * 200_000})
                shown = shown.model_copy(update={"completions": (left, shown.completions[1])})
                ledger.record_pair(shown)
                ledger.record_vote(pair_id=shown.pair_id, voter=shown.voter, choice="a")
                if number % 8 == 7:
                    renewals = number // 8 + 1
                    assert log.wait_for(lambda least=renewals: log.renewed >= least and settled(), 30)  # type: ignore[misc]
    finally:
        relay.stop()
        ledger.close()
    assert sum(len(record.value or b"") for topic in TOPICS for record in log.records(topic)) < 5_000_000
    assert len(list(dataset.votes())) == len(list(dataset.pairs())) == 24


def test_topics_of_which_much_is_unread_are_not_renewed(log: FakeEventLog, dataset: Dataset) -> None:
    """In a replay all that is unread would be sent again, at each time."""
    log.memory = True
    clock = Clock()
    eraser = Eraser(log, dataset, FeedbackConfig(broker_holds_mb=1), GROUP, clock=clock)
    eraser.has_read(10 << 20)
    assert eraser.look(behind=20_000) is False
    assert log.renewed == 0
    clock.now += 100
    assert eraser.look(behind=3) is True
    assert log.renewed == 1


def test_who_renewed_the_topics_reads_anew_at_once(
    log: FakeEventLog, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would find out some seconds later, with its next look at the topics' ids."""
    log.memory = True
    real, made = log.consumer, []

    def consumer(topics: Sequence[str], group: str | None) -> EventConsumer:
        made.append(group)
        return real(topics, group)

    monkeypatch.setattr(log, "consumer", consumer)
    for number in range(3):
        shown = pair(number).model_copy(update={"prompt_token_ids": tuple(range(90_000))})
        sent(log, (PAIR_TOPIC, shown.to_bytes()))
    with curating(log, dataset, FeedbackConfig(curate_linger_s=0.0, broker_holds_mb=1)):
        assert log.wait_for(lambda: made == [GROUP, GROUP], 20)
    assert log.renewed == 1


def test_kafka_is_never_renewed(log: FakeEventLog, dataset: Dataset) -> None:
    eraser = Eraser(log, dataset, FeedbackConfig(broker_holds_mb=1), GROUP)
    eraser.has_read(10 << 20)
    eraser.look()
    assert (log.renewed, log.erased) == (0, 0)


def test_forgotten_on_a_broker_in_memory_the_topics_are_made_anew(log: FakeEventLog, dataset: Dataset) -> None:
    log.memory = True
    sent(log, (VOTE_TOPIC, vote(1).to_bytes()), (FORGOTTEN_TOPIC, EVENT.to_bytes()), (RECEIPT_TOPIC, b"{}"))
    dataset.forget(EVENT)
    wall = Clock()
    wall.now = asked(dataset) + IN_FLIGHT_S + 1
    Eraser(log, dataset, QUICK, GROUP, wall=wall).look()
    assert all(log.records(topic) == [] for topic in (*PEOPLES, FORGOTTEN_TOPIC, RECEIPT_TOPIC))
    assert dataset.is_erased(VOTER)


def test_a_partition_that_goes_to_another_curator_has_no_lag_here_any_more(log: FakeEventLog, dataset: Dataset) -> None:
    """Else the alert would go on about records that the other one has long read."""
    curator = Curator(log, dataset, QUICK)
    curator._tell_lag({("t", 0): 20_000, ("t", 1): 3})
    curator._tell_lag({("t", 1): 0})
    found = {tuple(sample.labels.values()): sample.value for sample in LAG.collect()[0].samples}
    assert ("t", "0") not in found
    assert found["t", "1"] == 0


def test_a_voter_of_an_odd_name_is_marked_too(dataset: Dataset) -> None:
    dataset.forget(VoterForgotten(event_id="../x", voter="../../v", until=START))
    assert not dataset.is_erased("../../v")
    assert dataset.is_erased("v_9")
