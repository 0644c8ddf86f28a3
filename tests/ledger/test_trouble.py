"""A full disk, a lock that stays, a folder that can't be written: clear errors, nothing half done."""

import resource
import sqlite3
import threading
from contextlib import closing
from datetime import timedelta

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from feedback.contracts import FORGOTTEN_TOPIC
from feedback.ledger import (
    Ledger,
    LedgerCounts,
    LedgerUnavailable,
    UnknownPair,
    VoteDraft,
    VoteOutcome,
    casting,
    database,
    outbox,
)
from tests.ledger.builders import shown
from tests.ledger.test_relay import eventually


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite3"


def test_a_full_disk_refuses_the_vote_and_keeps_what_was_there(path):
    ledger = Ledger.open(f"sqlite:///{path}")
    ledger.record_pair(shown("pair_1"))

    # SQLite's own limit on pages fails just as a full disk does.
    def limit(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    event.listen(ledger._database._writing, "begin", limit)
    with pytest.raises(LedgerUnavailable, match="free some space"):
        for number in range(200):
            ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="a", edited="x" * 50_000)
            ledger.record_pair(shown(f"more_{number}"))
    counts = ledger.counts()
    assert counts.pairs + counts.votes == len(ledger.pending(1000))
    ledger.close()


def test_a_voter_is_forgotten_and_told_of_though_the_log_could_not_be_emptied(path):
    ledger = Ledger.open(f"sqlite:///{path}")
    for number in range(40):
        ledger.record_pair(shown(f"bob_{number}", conversation_id="bobs", voter="v_bob"))
        ledger.record_vote(pair_id=f"bob_{number}", voter="v_bob", choice="a", edited="x" * 50_000)
    ledger.forget("v_nobody")  # leaves nothing in the log: what comes now lies beyond the file's end
    ledger.record_pair(shown("ann_1", conversation_id="anns", voter="v_ann"))
    ledger.record_vote(pair_id="ann_1", voter="v_ann", choice="a", edited="y" * 50_000)
    told = threading.Event()
    ledger.on_outbox(told.set)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        with pytest.raises(LedgerUnavailable, match="the disk fails, or is full"):
            ledger.forget("v_ann")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.is_set()
    assert [stone.voter for stone in ledger.forgotten()] == ["v_nobody", "v_ann"]
    assert ledger.forget("v_ann").pairs == 0
    assert b"y" * 1000 not in path.read_bytes() + path.with_name(path.name + "-wal").read_bytes()
    ledger.close()


def test_a_lock_that_stays_is_an_error_in_bounded_time(path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    ledger = Ledger.open(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="another process holds the ledger"):
        ledger.record_pair(shown())
    assert ledger.counts() == LedgerCounts(0, 0, 0)
    other.execute("ROLLBACK")
    other.close()
    ledger.record_pair(shown())
    ledger.close()


def test_a_file_where_the_folder_should_be_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerUnavailable, match="choose another --data-dir"):
        Ledger.open(f"sqlite:///{tmp_path / 'file' / 'ledger.sqlite3'}")


def test_a_read_only_database_refuses_the_vote_and_says_what_to_do(path):
    ledger = Ledger.open(f"sqlite:///{path}")
    ledger.record_pair(shown())

    def forbid(connection):
        connection.exec_driver_sql("PRAGMA query_only=ON")

    event.listen(ledger._database._writing, "begin", forbid)
    with pytest.raises(LedgerUnavailable, match="read-only; make it writable"):
        ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="a")
    event.remove(ledger._database._writing, "begin", forbid)
    assert ledger.counts().votes == 0
    ledger.close()


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('could not extend file "base/1/2": No space left on device', "free some space"),
        ("disk I/O error", "the disk fails, or is full"),
        ("connection failed: FATAL:  the database system is starting up", "in a moment"),
        ("connection failed: FATAL:  sorry, too many clients already", "max_connections"),
        ("connection failed: connection refused", "start the database or mend its address"),
    ],
)
def test_what_a_database_says_comes_with_its_remedy(path, said, remedy):
    made = database.Database(f"sqlite:///{path}")

    def fail(_):
        raise OperationalError("INSERT", {}, Exception(said))

    with pytest.raises(LedgerUnavailable, match=remedy):
        made.write(fail)
    made.close()


@pytest.mark.slow
def test_a_postgres_that_only_reads_refuses_the_vote_and_says_what_to_do(postgres):
    url = postgres.new_database("standby")
    ledger = Ledger.open(url)
    ledger.record_pair(shown())
    ledger.close()
    reading = Ledger.open(f"{url}?options=-cdefault_transaction_read_only%3Don")
    with pytest.raises(LedgerUnavailable, match="the one that writes"):
        reading.record_vote(pair_id="pair_1", voter="v_ann", choice="a")
    assert reading.counts() == LedgerCounts(1, 1, 0)
    reading.close()


def test_a_clock_that_was_set_back_delays_nothing_for_long(ledger, monkeypatch):
    """What was sent "tomorrow" can't have been: it is overdue at once, and no age is below nothing."""
    real = outbox.utc_now
    monkeypatch.setattr(outbox, "utc_now", lambda: real() + timedelta(days=1))
    ledger.record_pair(shown())
    ledger.mark_sent([row.seq for row in ledger.pending(10)])
    ledger.record_pair(shown("pair_2"))
    monkeypatch.setattr(outbox, "utc_now", real)
    assert ledger.outbox_stats().oldest_pending_age_s == 0
    assert ledger.requeue(None, overdue_s=60) == 1
    assert [row.event_id for row in ledger.pending(10)] == ["pair_1", "pair_2"]


def test_a_clock_that_was_set_forward_repeats_events_and_loses_none(ledger, monkeypatch):
    ledger.record_pair(shown())
    ledger.mark_sent([row.seq for row in ledger.pending(10)])
    assert ledger.requeue(None, overdue_s=60) == 0
    real = outbox.utc_now
    monkeypatch.setattr(outbox, "utc_now", lambda: real() + timedelta(days=1))
    assert ledger.requeue(None, overdue_s=60) == 1


def waiting_for_a_lock(ledger):
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return ledger._database.read(lambda connection: connection.execute(query).scalar_one()) == 1


@pytest.mark.slow
def test_a_voter_who_is_forgotten_while_a_vote_of_theirs_is_written_is_forgotten(postgres, monkeypatch):
    """Another serving's vote, not committed yet: the pair can't go before it, and it is not seen."""
    url = postgres.new_database("vote_under_way")
    with closing(Ledger.open(url)) as serving, closing(Ledger.open(url)) as other:
        other.record_pair(shown())
        written, finish = threading.Event(), threading.Event()
        real = casting._outcome

        def waits(*args, **named):
            written.set()
            assert finish.wait(20)
            return real(*args, **named)

        monkeypatch.setattr(casting, "_outcome", waits)
        voting = threading.Thread(target=lambda: other.record_vote(pair_id="pair_1", voter="v_ann", choice="a"))
        voting.start()
        assert written.wait(20)
        forgetting = threading.Thread(target=lambda: serving.forget("v_ann"))
        forgetting.start()
        eventually(lambda: waiting_for_a_lock(serving))
        finish.set()
        voting.join(20)
        forgetting.join(20)
        assert serving.counts() == LedgerCounts(0, 0, 0)
        assert [event.voter for event in serving.forgotten()] == ["v_ann"]
        assert [row.topic for row in serving.pending(10)] == [FORGOTTEN_TOPIC]


@pytest.mark.slow
def test_a_vote_whose_voter_is_forgotten_meanwhile_finds_no_pair_and_hurts_no_other(postgres, monkeypatch):
    """Votes are recorded in groups: the others' were refused with it."""
    url = postgres.new_database("forgotten_meanwhile")
    with closing(Ledger.open(url)) as serving, closing(Ledger.open(url)) as other:
        serving.record_pair(shown())
        serving.record_pair(shown("pair_2", voter="v_bob", conversation_id="talk_2"))
        real, first = casting._insert, [True]

        def forgotten_first(*args, **named):
            if first and first.pop():
                other.forget("v_ann")
            return real(*args, **named)

        monkeypatch.setattr(casting, "_insert", forgotten_first)
        drafts = [VoteDraft("pair_1", "v_ann", "a"), VoteDraft("pair_2", "v_bob", "b")]
        mine, others = serving.record_votes(drafts)
        assert isinstance(mine, UnknownPair)
        assert isinstance(others, VoteOutcome)
        assert others.created
