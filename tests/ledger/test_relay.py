"""The relay against the fake event log."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry

from feedback.config import FeedbackConfig
from feedback.contracts import (
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    RELEASE_TOPIC,
    TOPICS,
    VOTE_TOPIC,
    PairShown,
    RecordsCurated,
    ReleaseChanged,
    ReleaseState,
)
from feedback.event_log import EventLogError, OutgoingRecord
from feedback.ledger import Ledger, LedgerUnavailable
from feedback.relay import Relay, RelayMetrics
from tests.fakes.event_log import FakeEventLog
from tests.ledger.builders import shown

QUICK = FeedbackConfig(relay_idle_s=0.01)


@pytest.fixture
def log():
    return FakeEventLog()


@pytest.fixture
def start(ledger, log):
    relays = []

    def begin(**more):
        relay = Relay(ledger, log, more.pop("config", QUICK), **more)
        relays.append(relay)
        relay.start()
        return relay

    yield begin
    for relay in relays:
        relay.stop()


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr("feedback.relay.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("feedback.relay.LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr("feedback.relay.TOPICS_CHECK_S", 0.02)
    monkeypatch.setattr("feedback.relay.OVERDUE_CHECK_S", 0.02)


def eventually(predicate, timeout_s=30.0):
    tick, deadline = threading.Event(), time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen in time"
        tick.wait(0.005)


def ids(log, topic=PAIR_TOPIC):
    return [PairShown.from_bytes(record.value).pair_id for record in log.records(topic)]


def confirm(log, *event_ids):
    receipt = RecordsCurated(event_ids=event_ids).to_bytes()
    assert log.producer().send([OutgoingRecord(RECEIPT_TOPIC, "curator", receipt)]) == [None]


def settled(ledger, pending=0, unconfirmed=0):
    def check():
        stats = ledger.outbox_stats()
        return (stats.pending, stats.unconfirmed) == (pending, unconfirmed)

    return check


def test_rows_are_sent_in_order_and_confirmed_by_receipts(ledger, log, start):
    for number in range(5):
        ledger.record_pair(shown(f"pair_{number}"))
    vote = ledger.record_vote(pair_id="pair_3", voter="v_ann", choice="a")
    start()
    eventually(settled(ledger, unconfirmed=6))
    assert ids(log) == [f"pair_{number}" for number in range(5)]
    confirm(log, *ids(log), vote.vote_id)
    eventually(settled(ledger))


def test_what_is_recorded_later_follows_without_being_asked(ledger, log, start):
    start(config=FeedbackConfig(relay_idle_s=0.05))
    ledger.record_pair(shown())
    eventually(lambda: ids(log) == ["pair_1"])


def test_what_is_recorded_while_the_relay_idles_goes_at_once(ledger, log, start):
    relay = start(config=FeedbackConfig(relay_idle_s=3600))
    eventually(lambda: relay.status().connected)
    for number in range(3):
        ledger.record_pair(shown(f"pair_{number}"))
        eventually(lambda number=number: f"pair_{number}" in ids(log))


def test_the_idle_relay_listens_and_never_just_looks(ledger, log, start, monkeypatch):
    """A Kafka client drops what it is at when its poll ends: with no time it would never find a restarted broker."""
    waits, open_consumer = [], log.consumer

    def listening(topics, group):
        consumer = open_consumer(topics, group)
        poll = consumer.poll
        consumer.poll = lambda timeout_s, *more: waits.append(timeout_s) or poll(timeout_s, *more)
        return consumer

    monkeypatch.setattr(log, "consumer", listening)
    start()
    eventually(lambda: len(waits) >= 2)
    assert min(waits) >= 0.1  # a connection on one machine is made in milliseconds


def test_stopping_does_not_wait_for_the_idle_time(ledger, log, start):
    relay = start(config=FeedbackConfig(relay_idle_s=3600))
    eventually(lambda: relay.status().connected)
    relay.stop(timeout_s=30.0)
    assert not relay.status().running


def test_a_receipt_that_comes_before_the_row_is_marked_sent_still_counts(ledger):
    ledger.record_pair(shown())
    (row,) = ledger.pending(1)
    assert ledger.mark_confirmed(["pair_1", "somebody_elses"]) == 1
    ledger.mark_sent([row.seq])
    assert settled(ledger)()


def test_a_broker_that_is_down_at_the_start_loses_nothing(ledger, log, start):
    log.down = True
    relay = start()
    ledger.record_pair(shown())
    eventually(lambda: relay.status().error is not None)
    assert not relay.status().connected
    log.down = False
    eventually(lambda: ids(log) == ["pair_1"])
    eventually(lambda: relay.status().connected)


def test_topics_that_somebody_else_made_again_during_an_outage_are_told_anew(ledger, log, start):
    relay = start()
    for name in ("pair_1", "pair_2"):
        ledger.record_pair(shown(name))
    eventually(settled(ledger, unconfirmed=2))
    confirm(log, "pair_1")
    eventually(settled(ledger, unconfirmed=1))
    log.down = True
    eventually(lambda: not relay.status().connected)
    log.forget()
    log.make_as_somebody_else(TOPICS)
    log.down = False
    eventually(lambda: ids(log) == ["pair_2"])


def test_an_outage_of_a_broker_that_remembers_sends_nothing_twice(ledger, log, start):
    relay = start()
    ledger.record_pair(shown("pair_1"))
    eventually(settled(ledger, unconfirmed=1))
    log.down = True
    eventually(lambda: not relay.status().connected)
    ledger.record_pair(shown("pair_2"))
    log.down = False
    eventually(settled(ledger, unconfirmed=2))
    assert ids(log) == ["pair_1", "pair_2"]


def test_a_new_process_sends_again_what_the_last_one_has_no_receipt_for(ledger, log, start):
    first = start()
    for name in ("pair_1", "pair_2"):
        ledger.record_pair(shown(name))
    eventually(settled(ledger, unconfirmed=2))
    confirm(log, "pair_1")
    eventually(settled(ledger, unconfirmed=1))
    first.stop()
    log.forget()
    log.ensure_topics(TOPICS)
    start()
    eventually(lambda: ids(log) == ["pair_2"])


def test_topics_that_had_to_be_made_again_are_told_anew(ledger, log, start):
    made = []
    start(on_topics_made=made.append)
    ledger.record_pair(shown("pair_1"))
    ledger.record_pair(shown("pair_2"))
    ledger.record_release(ReleaseChanged(name="p", before=None, after=ReleaseState.IN_OFFICE, reason="r", actor="auto"))
    eventually(settled(ledger, unconfirmed=2))
    confirm(log, "pair_1")
    eventually(settled(ledger, unconfirmed=1))
    log.forget()
    eventually(lambda: ids(log) == ["pair_2"] and len(log.records(RELEASE_TOPIC)) == 1)
    assert made == [frozenset(TOPICS)] * 2


def test_receipts_whose_offsets_go_back_tell_that_the_log_forgot(ledger, log, start, monkeypatch):
    monkeypatch.setattr("feedback.relay.TOPICS_CHECK_S", 3600)
    start()
    ledger.record_pair(shown("pair_1"))
    ledger.record_pair(shown("pair_2"))
    eventually(settled(ledger, unconfirmed=2))
    for _ in range(3):
        confirm(log, "pair_1")
    eventually(settled(ledger, unconfirmed=1))
    with log.changed:
        log.forget()
        log.make_as_somebody_else(TOPICS)
    confirm(log, "another")
    eventually(lambda: ids(log) == ["pair_2"])


def test_an_overdue_receipt_sends_the_row_again(ledger, log, start):
    start(config=FeedbackConfig(relay_idle_s=0.01, receipt_timeout_s=0.05))
    ledger.record_pair(shown())
    eventually(lambda: len(ids(log)) >= 3)
    assert set(ids(log)) == {"pair_1"}
    confirm(log, "pair_1")
    eventually(settled(ledger))


def test_a_record_that_is_too_large_is_parked_and_the_others_go_on(ledger, log, start):
    log.max_record_bytes = len(shown("pair_1").to_bytes()) + 100
    ledger.record_pair(shown("pair_1", conversation_id="talk_" + "x" * 200))
    ledger.record_pair(shown("pair_2"))
    start()
    eventually(lambda: ids(log) == ["pair_2"])
    eventually(lambda: ledger.outbox_stats().parked == 1)
    (parked,) = ledger.parked()
    assert parked.event_id == "pair_1"
    assert "message.max.bytes" in parked.error
    log.max_record_bytes = 1_000_000
    assert ledger.unpark() == 1
    eventually(lambda: sorted(ids(log)) == ["pair_1", "pair_2"])


def test_after_a_refusal_the_later_events_of_the_key_go_again_in_order(ledger, log, start):
    for number in range(3):
        ledger.record_pair(shown(f"pair_{number}"))
    ledger.record_pair(shown("other", conversation_id="talk_2"))
    log.send_faults["pair_1"] = EventLogError("not today")
    start()
    eventually(settled(ledger, unconfirmed=4))
    mine = [name for name in ids(log) if name != "other"]
    assert mine == ["pair_0", "pair_2", "pair_1", "pair_2"]
    assert ids(log).count("other") == 1


def test_a_receipt_that_can_not_be_read_is_passed_over(ledger, log, start):
    start()
    ledger.record_pair(shown())
    eventually(settled(ledger, unconfirmed=1))
    log.producer().send([OutgoingRecord(RECEIPT_TOPIC, "curator", b"{")])
    confirm(log, "pair_1")
    eventually(settled(ledger))


@pytest.mark.parametrize("fault", [LedgerUnavailable("database is locked"), RuntimeError("nobody foresaw it")])
def test_the_thread_survives_faults_of_the_ledger_and_of_itself(ledger, log, start, monkeypatch, fault):
    whole, failed = ledger.pending, threading.Event()

    def fail_once(limit):
        if not failed.is_set():
            failed.set()
            raise fault
        return whole(limit)

    monkeypatch.setattr(ledger, "pending", fail_once)
    relay = start()
    ledger.record_pair(shown())
    eventually(lambda: ids(log) == ["pair_1"])
    assert failed.is_set()
    assert relay.status().running


def test_stopping_ends_the_thread_even_while_the_broker_is_down(ledger, log, start):
    log.down = True
    relay = start()
    eventually(lambda: relay.status().error is not None)
    relay.stop()
    assert not relay.status().running


def test_a_relay_starts_once(start):
    with pytest.raises(RuntimeError, match="has been started"):
        start().start()


def test_the_topic_of_a_vote_is_keyed_by_conversation(ledger, log, start):
    ledger.record_pair(shown())
    ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="tie")
    start()
    eventually(lambda: len(log.records(VOTE_TOPIC)) == 1)
    assert log.records(VOTE_TOPIC)[0].key == b"talk_1"


def test_what_was_sent_confirmed_and_sent_again_is_counted(ledger, log, start):
    registry = CollectorRegistry()
    relay = start(metrics=RelayMetrics(registry))
    ledger.record_pair(shown("pair_1"))
    ledger.record_pair(shown("pair_2"))
    eventually(settled(ledger, unconfirmed=2))
    confirm(log, "pair_1")
    eventually(settled(ledger, unconfirmed=1))
    log.forget()
    eventually(lambda: ids(log) == ["pair_2"])
    relay.stop()

    def value(name, **labels):
        return registry.get_sample_value(f"hustings_outbox_{name}", labels)

    assert (value("sent_total"), value("confirmed_total"), value("failures_total")) == (3, 1, 0)
    assert value("requeued_total", cause="topic") == 1
    assert value("connected") == 0


def test_topics_made_again_are_one_loss_however_it_is_noticed(ledger, log, start):
    """The next receipt begins at 0 again, which tells what was told already: nothing goes a third time."""
    registry = CollectorRegistry()
    relay = start(metrics=RelayMetrics(registry))
    for name in ("pair_1", "pair_2", "pair_3"):
        ledger.record_pair(shown(name))
    eventually(settled(ledger, unconfirmed=3))
    confirm(log, "pair_1")
    eventually(settled(ledger, unconfirmed=2))
    log.forget()
    eventually(lambda: ids(log) == ["pair_2", "pair_3"])
    confirm(log, "pair_2")
    eventually(settled(ledger, unconfirmed=1))
    relay.stop()
    assert registry.get_sample_value("hustings_outbox_sent_total") == 5
    assert registry.get_sample_value("hustings_outbox_requeued_total", {"cause": "topic"}) == 2
    assert registry.get_sample_value("hustings_outbox_requeued_total", {"cause": "forgotten"}) is None


def test_two_relays_on_one_ledger_settle_everything_and_never_trip_over_each_other(ledger, url, log):
    registries = [CollectorRegistry(), CollectorRegistry()]
    with closing(Ledger.open(url)) as other:
        relays = [
            Relay(each, log, QUICK, metrics=RelayMetrics(registry))
            for each, registry in zip((ledger, other), registries, strict=True)
        ]
        for relay in relays:
            relay.start()
        # Confirmed in an order of its own, while both still mark rows as sent.
        for number in range(60):
            ledger.record_pair(shown(f"pair_{number}"))
            if number % 20 == 19:
                sent = [f"pair_{each}" for each in reversed(range(number + 1))]
                eventually(lambda sent=sent: set(ids(log)) >= set(sent))
                confirm(log, *sent)
        eventually(settled(ledger))
        for relay in relays:
            relay.stop()
    assert set(ids(log)) == {f"pair_{number}" for number in range(60)}
    assert len(ids(log)) <= 2 * 60 * 2  # by either, and once more after the topics were made
    assert [registry.get_sample_value("hustings_outbox_failures_total") for registry in registries] == [0, 0]


def test_relays_that_mark_the_same_rows_at_once_do_not_deadlock(ledger):
    for number in range(200):
        ledger.record_pair(shown(f"pair_{number}"))
    rows = ledger.pending(200)
    backwards = [row.event_id for row in reversed(rows)]
    for _ in range(10):
        jobs = (
            lambda: ledger.mark_sent([row.seq for row in rows]),
            lambda: ledger.requeue({PAIR_TOPIC}, None),
            lambda: ledger.mark_confirmed(backwards),
            lambda: ledger.replay({PAIR_TOPIC}),
        )
        with ThreadPoolExecutor(len(jobs)) as pool:
            for done in [pool.submit(job) for job in jobs]:
                done.result(timeout=30)
