"""The database under the ledger: connections, durability settings, and the one way in for reads and for writes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from feedback.ledger.errors import LedgerError, LedgerUnavailable

T = TypeVar("T")

BUSY_TIMEOUT_S = 15.0
"""How long a writer waits for another process's transaction before it gives up."""

_HINTS = {
    "database is locked": "another process holds the ledger; stop it or try again",
    "disk is full": "the disk is full; free some space, then go on",
    "readonly database": "the ledger's file or folder is read-only; make it writable",
    "unable to open": "the folder is missing or not ours; create it or choose another --data-dir",
    "malformed": "the file is damaged; restore a backup of it",
    "not a database": "the file is no SQLite database; choose another --data-dir",
}


class Database:
    """An engine with the ledger's settings. Safe to use from many threads.

    A write is a function of a connection that runs in one transaction: one place, so that group commit can later run
    several of them between a BEGIN and a COMMIT.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self._url) if self.is_sqlite else _postgres_engine(self._url)
        self._writing = self._engine.execution_options(hustings_writing=True)
        # SQLite has one writer; queueing for it here is fair, where its own busy handler sleeps and tries its luck.
        self._turn: Any = threading.Lock() if self.is_sqlite else nullcontext()

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
        with self._turn:
            return self._run(self._writing, work)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        try:
            with engine.begin() as connection:
                return work(connection)
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise self._unavailable(error) from error
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(error.orig, sqlite3.DatabaseError):
                raise self._unavailable(error) from error
            raise

    def _unavailable(self, error: Exception) -> LedgerUnavailable:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        hint = next((hint for sign, hint in _HINTS.items() if sign in cause), "start the database or mend its address")
        return LedgerUnavailable(f"ledger {self._url.render_as_string(hide_password=True)}: {cause}; {hint}")


def _checked_url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise LedgerError(
            f"ledger address {text!r} is no SQLAlchemy URL; try sqlite:///FILE or postgresql://…"
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
    return create_engine(url, pool_size=16, max_overflow=48, pool_pre_ping=True, connect_args={"connect_timeout": 10})


def _sqlite_engine(url: URL) -> Engine:
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=16, max_overflow=48, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes late and without IMMEDIATE; ours is below.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1e3)}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first can't write any more once another has written: take the lock at the beginning.
    writing = connection.get_execution_options().get("hustings_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
