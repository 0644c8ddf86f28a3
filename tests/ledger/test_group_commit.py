"""Writes that share a commit on SQLite: each still stands and falls alone."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from feedback.ledger import LedgerUnavailable
from feedback.ledger.database import Database


@pytest.fixture
def database(tmp_path):
    made = Database(f"sqlite:///{tmp_path / 'db.sqlite3'}")
    made.write(lambda c: c.execute(text("CREATE TABLE t (n INTEGER PRIMARY KEY)")))
    yield made
    made.close()


def insert(number):
    return lambda c: c.execute(text("INSERT INTO t VALUES (:n)"), {"n": number}).rowcount


def numbers(database):
    return database.read(lambda c: list(c.execute(text("SELECT n FROM t ORDER BY n")).scalars()))


def together(database, works):
    """Run the works in threads that all wait while another write holds the turn; results or errors in their order."""
    held, release = threading.Event(), threading.Event()

    def hold(_):
        held.set()
        release.wait(10)

    def attempt(work):
        try:
            return database.write(work)
        except Exception as error:  # noqa: BLE001  the test looks at it
            return error

    with ThreadPoolExecutor(len(works) + 1) as pool:
        holder = pool.submit(attempt, hold)
        held.wait(10)
        started = []
        for number, work in enumerate(works, start=1):
            started.append(pool.submit(attempt, work))
            while len(database._waiting) < number:
                threading.Event().wait(0.001)
        release.set()
        holder.result(10)
        return [future.result(10) for future in started]


def counted(database, what):
    seen = []
    event.listen(database._writing, what, lambda *_: seen.append(1))
    return seen


def test_writes_that_wait_share_one_commit(database):
    commits = counted(database, "commit")
    assert together(database, [insert(n) for n in range(8)]) == [1] * 8
    # One of the write that held the turn, one of all the others.
    assert len(commits) == 2
    assert numbers(database) == list(range(8))


def test_a_write_that_raises_takes_only_its_own_part_back(database):
    def half_way(connection):
        insert(100)(connection)
        raise ValueError("changed my mind")

    results = together(database, [insert(1), half_way, insert(2)])
    assert [results[0], results[2]] == [1, 1]
    assert isinstance(results[1], ValueError)
    assert numbers(database) == [1, 2]


def test_an_error_of_the_database_hits_only_the_write_that_caused_it(database):
    results = together(database, [insert(1), insert(1), insert(2)])
    assert [results[0], type(results[1]), results[2]] == [1, IntegrityError, 1]
    assert numbers(database) == [1, 2]


def test_a_commit_that_fails_acknowledges_nothing(database):
    def refuse(_):
        raise LedgerUnavailable("database or disk is full")

    event.listen(database._writing, "commit", refuse)
    results = together(database, [insert(1), insert(2)])
    assert all(isinstance(result, LedgerUnavailable) for result in results)
    event.remove(database._writing, "commit", refuse)
    assert numbers(database) == []


def test_writes_behind_a_lock_that_stays_wait_for_it_together_and_not_one_after_the_other(database):
    begins = []

    def locked(_):
        begins.append(1)
        if len(begins) > 1:  # the first is that of the write that holds the turn
            raise OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked"))

    event.listen(database._writing, "begin", locked)
    results = together(database, [insert(n) for n in range(8)])
    assert [type(result) for result in results] == [LedgerUnavailable] * 8
    assert len({id(result) for result in results}) == 8
    assert len(begins) == 2, "each would have waited fifteen seconds more"
    event.remove(database._writing, "begin", locked)
    assert together(database, [insert(1), insert(2)]) == [1, 1]


def test_more_writes_than_a_group_holds_are_all_done(database, monkeypatch):
    monkeypatch.setattr("feedback.ledger.database.LARGEST_GROUP", 3)
    assert together(database, [insert(n) for n in range(11)]) == [1] * 11
    assert len(numbers(database)) == 11


def test_one_connection_writes_and_keeps_what_it_has_read(database):
    """Another's pages would be read again after each commit of this one, and the other way round."""

    def about(connection):
        made = connection.connection.dbapi_connection
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("temp_store", "synchronous")]
        return id(made), *settings

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: database.write(about), range(12)))
    ((_, temporary, synchronous),) = found
    assert (temporary, synchronous) == (2, 2), "in memory; FULL"
