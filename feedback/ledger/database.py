"""The database under the ledger: connections, durability settings, and the one way in for reads and for writes."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from feedback.addresses import without_password
from feedback.ledger.errors import LedgerError, LedgerUnavailable

T = TypeVar("T")

BUSY_TIMEOUT_S = 15.0
"""How long a writer waits for another process's transaction before it gives up."""

POSTGRES_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""How libpq finds out that the network ate a server: else a vote would wait for a quarter of an hour. In seconds, but
for the last. What the ledger's URL says of them goes before."""

LARGEST_GROUP = 256
"""Writes that share a commit at most."""

WRITER_CACHE_KIB = 32 * 1024
"""Of the pages that SQLite's writer keeps: ids are random, so that votes touch pages all over the indexes."""

OVERTAKEN = frozenset({"23503", "40001", "40P01"})
"""PostgreSQL's codes where another serving was quicker: a row that is referred to went, or one came that refers to ours
(a voter was forgotten while they voted); transactions that can't be put in order; a deadlock. Done again, the write
sees what is there now."""
OVERTAKEN_ATTEMPTS = 4

READ_ONLY = "25006"
"""PostgreSQL's code for a write where only reading is allowed."""

_HINTS = {
    "database is locked": "another process holds the ledger; stop it or try again",
    "disk I/O error": "the disk fails, or is full; see the system's log, mend it, then go on",
    "disk is full": "the disk is full; free some space, then go on",
    "readonly database": "the ledger's file or folder is read-only; make it writable",
    "read-only transaction": "the database only reads (a standby?); give the address of the one that writes",
    "No space left on device": "the database's disk is full; free some space there, then go on",
    "starting up": "the database is being started; it will answer in a moment",
    "in recovery mode": "the database recovers from a crash; it will answer in a moment",
    "too many clients": "raise the database's max_connections, or run fewer processes on it",
    "unable to open": "the folder is missing, read-only or not ours; create it or choose another --data-dir",
    "malformed": "the file is damaged; restore a backup of it",
    "not a database": "the file is no SQLite database; choose another --data-dir",
}


class _Write(Generic[T]):
    """A write that waits for its turn, and then what came of it."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.settled = False
        self._work = work
        self._result: T | None = None
        self._error: Exception | None = None

    def attempt(self, connection: Connection) -> None:
        """Run in a savepoint of the group's transaction. What is no fault of the database is this write's alone."""
        self._error = None
        try:
            with connection.begin_nested():
                self._result = self._work(connection)
        except DBAPIError:
            raise
        except Exception as error:  # noqa: BLE001  raised again in the thread whose write it is
            self._error = error

    def run_alone(self, run: Callable[[Callable[[Connection], T]], T]) -> None:
        """Run in a transaction of its own."""
        self._error = None
        try:
            self._result = run(self._work)
        except Exception as error:  # noqa: BLE001  raised again in the thread whose write it is
            self._error = error

    def fail(self, error: Exception) -> None:
        """It could not be tried."""
        self._error = error

    def outcome(self) -> T:
        """The result.

        Raises:
            Exception: whatever the write raised.
        """
        if self._error is not None:
            raise self._error
        return cast(T, self._result)


class Database:
    """An engine with the ledger's settings. Safe to use from many threads.

    A write is a function of a connection that runs in one transaction. On SQLite, which has one writer and waits for
    the disk at each commit, writes that come while another is committed share the next commit, each in a savepoint.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self._url) if self.is_sqlite else _postgres_engine(self._url)
        self._writing = _sqlite_writer(self._url) if self.is_sqlite else self._engine
        # SQLite has one writer; queueing for it here is fair, where its own busy handler sleeps and tries its luck.
        self._turn = threading.Lock()
        self._waiting: deque[_Write[Any]] = deque()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads.

        Raises:
            LedgerUnavailable: the database can't be reached.
        """
        return self._run(self._engine, work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction; when this returns, it is on disk.

        Raises:
            LedgerUnavailable: the database can't be reached, is full, locked or read-only; nothing was written.
        """
        if not self.is_sqlite:
            return self._write_beside_others(work)
        mine = _Write(work)
        self._waiting.append(mine)
        with self._turn:
            while not mine.settled:
                self._commit_waiting()
        return mine.outcome()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()
        self._writing.dispose()

    def empty_write_ahead_log(self) -> None:
        """Move what is committed into SQLite's file and leave nothing in the log beside it; readers may delay it.

        Raises:
            LedgerUnavailable: the file can't take it (a full disk, say); what is committed stays in the log.
        """
        if not self.is_sqlite:
            return
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise self._unavailable(error) from error
        finally:
            connection.close()

    def _write_beside_others(self, work: Callable[[Connection], T]) -> T:
        for left in reversed(range(OVERTAKEN_ATTEMPTS)):
            try:
                return self._run(self._writing, work)
            except (LedgerUnavailable, DBAPIError) as error:
                told = error.__cause__ if isinstance(error, LedgerUnavailable) else error
                if not left or getattr(getattr(told, "orig", None), "sqlstate", None) not in OVERTAKEN:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _commit_waiting(self) -> None:
        """Run the writes that wait in one transaction and settle them: whoever has the turn does it for the others."""
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), LARGEST_GROUP))]
        try:
            self._commit_group(group)
        except BaseException:
            # We are being interrupted; the others' writes are for the next who has the turn.
            self._waiting.extendleft(reversed(group))
            raise
        for write in group:
            write.settled = True

    def _commit_group(self, group: list[_Write[Any]]) -> None:
        begun = False

        def together(connection: Connection) -> None:
            nonlocal begun
            begun = True
            for write in group:
                write.attempt(connection)

        if len(group) > 1:
            try:
                return self._run(self._writing, together)
            except (LedgerUnavailable, DBAPIError) as error:
                if not begun and isinstance(error, LedgerUnavailable):
                    # Locked, or out of reach: no fault of any write. Each trying by itself would wait as long again.
                    for write in group:
                        write.fail(LedgerUnavailable(str(error)))
                    return None
                # The database may have rolled the whole group back: each by itself, so that none suffers for another.
        for write in group:
            write.run_alone(lambda work: self._run(self._writing, work))
        return None

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        try:
            with engine.begin() as connection:
                return work(connection)
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise self._unavailable(error) from error
        except DBAPIError as error:
            # SQLite's bare DatabaseError means a broken file; its kinds (a constraint, say) are our own mistakes.
            broken = type(error.orig) is sqlite3.DatabaseError
            if error.connection_invalidated or broken or getattr(error.orig, "sqlstate", None) == READ_ONLY:
                raise self._unavailable(error) from error
            raise

    def _unavailable(self, error: Exception) -> LedgerUnavailable:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        hint = next((hint for sign, hint in _HINTS.items() if sign in cause), "start the database or mend its address")
        return LedgerUnavailable(
            f"ledger {without_password(self._url.render_as_string(hide_password=False))}: {cause}; {hint}"
        )


def _checked_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # ValueError: of a port that is no number
        raise LedgerError(
            f"ledger address {without_password(text)!r} is no SQLAlchemy URL; try sqlite:///FILE or postgresql://…"
        ) from error
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise LedgerError("the ledger must outlive the process: give it a file, sqlite:///FILE")
        return url
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise LedgerError(f"the ledger speaks sqlite and postgresql, not {backend!r}")


def _postgres_engine(url: URL) -> Engine:
    told = {name: value for name, value in POSTGRES_PATIENCE.items() if name not in url.query}
    return create_engine(url, pool_size=16, max_overflow=48, pool_pre_ping=True, connect_args=told)


def _sqlite_engine(url: URL) -> Engine:
    folder = Path(url.database or "").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LedgerUnavailable(f"ledger folder {folder}: {reason}; choose another --data-dir") from error
    engine = create_engine(url, pool_size=16, max_overflow=48, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _sqlite_writer(url: URL) -> Engine:
    """One connection for all writes: what it has read of the file stays true as long as no other process writes."""
    engine = create_engine(url, pool_size=1, max_overflow=0, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "connect", _widen_sqlite)
    # A transaction that reads first can't write any more once another has written: take the lock at the beginning.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes late and without IMMEDIATE; ours is below.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",  # what was deleted is overwritten: forgotten voters leave no bytes in free pages
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1e3)}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _widen_sqlite(connection: Any, _record: Any) -> None:
    connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
    # What a statement may have to take back goes to a file otherwise, page by page.
    connection.execute("PRAGMA temp_store=MEMORY")
