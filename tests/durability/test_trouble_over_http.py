"""What a voter hears while the ledger is full, locked or read-only: 503, never 201; the same vote counts after."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection, event

from feedback.ledger import Ledger, database
from feedback.paths import DataPaths
from serve.app import create_app
from serve.config import ServeConfig
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import client_of, ready_deps


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    DataPaths(tmp_path).create()
    opened = Ledger.open(DataPaths(tmp_path).ledger_url)
    yield opened
    opened.close()


@pytest.fixture
async def client(ledger: Ledger, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine = FakeEngine()
    await engine.start()
    app = create_app(ready_deps(engine, ledger, DataPaths(tmp_path), ServeConfig()))
    async with client_of(app, **{"X-Hustings-Voter": "somebody"}) as made:
        yield made


@contextmanager
def at_each_begin(ledger: Ledger, statement: Callable[[Connection], str]) -> Iterator[None]:
    def run(connection: Connection) -> None:
        connection.exec_driver_sql(statement(connection))

    engine = ledger._database._writing
    event.listen(engine, "begin", run)
    yield
    event.remove(engine, "begin", run)
    engine.dispose()  # the settings above are the connections' own


def full(ledger: Ledger, _: Path) -> AbstractContextManager[None]:
    """SQLite's own limit on pages fails just as a full disk does."""
    return at_each_begin(
        ledger,
        lambda connection: f"PRAGMA max_page_count={connection.exec_driver_sql('PRAGMA page_count').scalar()}",
    )


def read_only(ledger: Ledger, _: Path) -> AbstractContextManager[None]:
    return at_each_begin(ledger, lambda _: "PRAGMA query_only=ON")


@contextmanager
def locked(_: Ledger, folder: Path) -> Iterator[None]:
    with closing(sqlite3.connect(folder / "ledger.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("trouble", "operator_reads"),
    [(full, "free some space"), (read_only, "make it writable"), (locked, "another process holds the ledger")],
)
async def test_a_vote_is_refused_until_the_ledger_is_mended_and_then_taken(
    client: httpx.AsyncClient,
    ledger: Ledger,
    tmp_path: Path,
    trouble: Callable[[Ledger, Path], AbstractContextManager[None]],
    operator_reads: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = await client.post("/v1/pairs", json={"messages": [{"role": "user", "content": "Well?"}]})
    vote = {"pair_id": pair.json()["pair_id"], "choice": "a", "edited": "better " * 2_000}
    with trouble(ledger, tmp_path):
        refused = await client.post("/v1/votes", json=vote)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"].endswith("ledger-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert ledger.counts().votes == 0
    said = capsys.readouterr()
    assert operator_reads in said.out + said.err
    taken = await client.post("/v1/votes", json=vote)
    assert taken.status_code == 201
    assert ledger.counts().votes == 1
    again = await client.post("/v1/votes", json=vote)
    assert (again.status_code, again.json()["vote_id"]) == (200, taken.json()["vote_id"])
