"""The outbox: states, waits and replays."""

import pytest

from feedback.contracts import PAIR_TOPIC, RELEASE_TOPIC, VOTE_TOPIC, ReleaseChanged, ReleaseState
from feedback.ledger import OutboxStats, outbox
from tests.ledger.builders import shown


@pytest.fixture
def clock(monkeypatch):
    """Microseconds that the outbox believes in; a test moves them."""
    now = {"us": 1_000_000_000}
    monkeypatch.setattr(outbox, "to_us", lambda _: now["us"])
    return now


def filled(ledger, count=3):
    for number in range(count):
        ledger.record_pair(shown(f"pair_{number}"))
    return ledger.pending(100)


def release(ledger, name="policy-000001"):
    change = ReleaseChanged(name=name, before=None, after=ReleaseState.CANDIDATE, reason="published", actor="auto")
    ledger.record_release(change)


def pass_time(clock, seconds):
    clock["us"] += round(seconds * 1e6)


def test_pending_is_in_order_and_no_longer_than_asked_for(ledger):
    filled(ledger, 5)
    rows = ledger.pending(3)
    assert [row.event_id for row in rows] == ["pair_0", "pair_1", "pair_2"]
    assert rows == sorted(rows, key=lambda row: row.seq)


def test_stats_follow_a_row_through_its_states(ledger, clock):
    assert ledger.outbox_stats() == OutboxStats(0, 0, 0.0, 0)
    rows = filled(ledger)
    pass_time(clock, 7.5)
    assert ledger.outbox_stats() == OutboxStats(3, 0, 7.5, 0)
    ledger.mark_sent([row.seq for row in rows[:2]])
    assert ledger.outbox_stats() == OutboxStats(1, 2, 7.5, 0)
    assert ledger.mark_confirmed(["pair_0", "pair_0", "unknown"]) == 1
    assert ledger.mark_confirmed(["pair_0"]) == 0
    ledger.park(rows[2].seq, "too large")
    assert ledger.outbox_stats() == OutboxStats(0, 1, 0.0, 1)


def test_marking_more_rows_than_one_statement_takes_marks_all(ledger):
    rows = filled(ledger, 30)
    ledger.mark_sent([*range(10_000, 11_100), *(row.seq for row in rows)])
    assert ledger.mark_confirmed([*(f"none_{n}" for n in range(1_100)), *(row.event_id for row in rows)]) == 30


def test_a_receipt_that_names_a_stranger_with_nul_confirms_ours_all_the_same(ledger):
    """Anybody who may write to the topic can have it written; the relay would read it again and again."""
    rows = filled(ledger, 2)
    ledger.mark_sent([row.seq for row in rows])
    assert ledger.mark_confirmed(["pair_0", "vote\x00stranger", "pair_1"]) == 2


def test_a_lost_topic_sends_its_unconfirmed_rows_again_in_their_order(ledger):
    rows = filled(ledger, 4)
    release(ledger)
    ledger.mark_sent([row.seq for row in ledger.pending(10)])
    ledger.mark_confirmed(["pair_1"])
    assert ledger.requeue({PAIR_TOPIC, VOTE_TOPIC}, None) == 3
    again = ledger.pending(10)
    assert [row.event_id for row in again] == ["pair_0", "pair_2", "pair_3"]
    assert again[0] == rows[0]
    assert ledger.requeue({RELEASE_TOPIC}, None) == 1


def test_an_overdue_receipt_is_waited_for_twice_as_long_each_time_and_an_hour_at_most(ledger, clock):
    filled(ledger, 1)
    for wait in (60, 120, 240, 480, 960, 1920, 3600, 3600, 3600):
        (row,) = ledger.pending(1)
        ledger.mark_sent([row.seq])
        pass_time(clock, wait - 1)
        assert ledger.requeue(None, 60.0) == 0
        pass_time(clock, 1)
        assert ledger.requeue(None, 60.0) == 1


def test_a_lost_topic_begins_the_waits_anew(ledger, clock):
    filled(ledger, 1)
    for _ in range(3):
        ledger.mark_sent([ledger.pending(1)[0].seq])
        pass_time(clock, 3600)
        ledger.requeue(None, 60.0)
    ledger.mark_sent([ledger.pending(1)[0].seq])
    ledger.requeue({PAIR_TOPIC}, None)
    ledger.mark_sent([ledger.pending(1)[0].seq])
    pass_time(clock, 60)
    assert ledger.requeue(None, 60.0) == 1


def test_topics_without_a_curator_wait_for_no_receipt(ledger, clock):
    release(ledger)
    ledger.mark_sent([ledger.pending(1)[0].seq])
    assert ledger.outbox_stats().unconfirmed == 0
    pass_time(clock, 1e6)
    assert ledger.requeue(None, 60.0) == 0
    assert ledger.mark_confirmed([row.event_id for row in ledger.pending(1)]) == 0


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_replay_sends_everything_again_in_the_same_bytes(ledger, monkeypatch, batch):
    monkeypatch.setattr("feedback.ledger.ledger.BATCH", batch)
    filled(ledger, 2)
    ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="both_bad", reasons=("wrong",), comment="ö")
    release(ledger)
    first = ledger.pending(10)
    ledger.mark_sent([row.seq for row in first])
    ledger.mark_confirmed([row.event_id for row in first[:2]])
    ledger.mark_confirmed([first[2].event_id])
    assert ledger.pending(10) == []
    assert ledger.replay({PAIR_TOPIC, VOTE_TOPIC, RELEASE_TOPIC}) == 4
    assert ledger.pending(10) == first


def test_a_replayed_row_waits_for_a_receipt_of_its_own(ledger, clock):
    """Receipts stay on a Kafka for days, and who reads them from the beginning meets those of the first sending."""
    rows = filled(ledger, 2)
    ledger.mark_sent([row.seq for row in rows])
    ledger.mark_confirmed(["pair_0", "pair_1"])
    ledger.replay([PAIR_TOPIC])
    assert ledger.mark_confirmed(["pair_0", "pair_1"]) == 0
    assert ledger.pending(10) == rows
    ledger.mark_sent([row.seq for row in rows])
    assert ledger.mark_confirmed(["pair_0"]) == 1
    pass_time(clock, 60)
    assert ledger.requeue(None, 60) == 1  # as overdue as a row that was sent for the first time
    assert ledger.pending(10) == rows[1:]


def test_what_is_sent_again_waits_from_then_on(ledger, clock):
    """A replay of last year's votes is no outage of a year: the alert for an old outbox would fire at once."""
    rows = filled(ledger, 4)
    ledger.mark_sent([row.seq for row in rows[:3]])
    ledger.mark_confirmed(["pair_0"])
    ledger.park(rows[3].seq, "too large")
    for again in (
        lambda: ledger.replay([PAIR_TOPIC]),
        lambda: ledger.requeue([PAIR_TOPIC], None),
        lambda: ledger.requeue(None, 60),
        ledger.unpark,
    ):
        pass_time(clock, 365 * 86_400)
        assert again() >= 1
        pass_time(clock, 5)
        assert ledger.outbox_stats().oldest_pending_age_s == 5
        ledger.mark_sent([row.seq for row in ledger.pending(10)])


def test_a_confirmed_row_keeps_no_copy_of_the_event(ledger):
    (row,) = filled(ledger, 1)
    ledger.mark_sent([row.seq])
    ledger.mark_confirmed([row.event_id])
    kept = ledger._database.read(lambda c: c.execute(outbox.outbox.select()).one())
    assert (kept.state, kept.value) == ("confirmed", None)


def test_parked_rows_can_be_sent_after_all(ledger):
    (row,) = filled(ledger, 1)
    ledger.park(row.seq, "2 MB are more than 1 MB")
    assert ledger.pending(10) == []
    assert [(parked.event_id, parked.error) for parked in ledger.parked()] == [("pair_0", "2 MB are more than 1 MB")]
    assert ledger.unpark() == 1
    assert ledger.pending(10) == [row]
    assert ledger.parked() == []


def test_large_rows_are_read_few_at_a_time_and_one_in_any_case(ledger):
    for number in range(4):
        ledger.record_pair(shown(f"pair_{number}"))
    size = len(ledger.pending(1)[0].value)

    def read(max_bytes):
        rows = ledger._database.read(lambda connection: outbox.pending(connection, 3, max_bytes))
        return [row.event_id for row in rows]

    assert read(1) == ["pair_0"]
    assert read(2 * size) == ["pair_0", "pair_1"]
    assert read(2 * size + 1) == ["pair_0", "pair_1"]
    assert read(9 * size) == ["pair_0", "pair_1", "pair_2"]


def test_no_row_keeps_a_copy_of_what_another_table_has(ledger):
    filled(ledger, 2)
    ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="a")
    release(ledger)
    kept = ledger._database.read(lambda c: c.execute(outbox.outbox.select()).all())
    assert [(row.topic, row.value is None) for row in kept] == [
        (PAIR_TOPIC, True),
        (PAIR_TOPIC, True),
        (VOTE_TOPIC, True),
        (RELEASE_TOPIC, False),
    ]
    assert all(row.value for row in ledger.pending(10))


def test_a_row_of_an_earlier_version_is_sent_in_the_bytes_that_it_has(ledger):
    filled(ledger, 1)
    ledger.record_vote(pair_id="pair_0", voter="v_ann", choice="a")
    ledger._database.write(lambda c: c.execute(outbox.outbox.update().values(value=b'{"old":1,"voter":"v_ann"}')))
    assert [row.value for row in ledger.pending(10)] == [b'{"old":1,"voter":"v_ann"}'] * 2


def test_more_rows_than_are_read_at_once_come_in_their_order(ledger, monkeypatch):
    monkeypatch.setattr(outbox, "_AT_ONCE", 2)
    rows = filled(ledger, 5)
    assert [row.event_id for row in rows] == [f"pair_{number}" for number in range(5)]
    assert ledger.pending(4) == rows[:4]
    assert ledger.pending(3) == rows[:3]
