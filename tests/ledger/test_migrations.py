"""The schema: what the migrations make is what the code expects, however many start together."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

import feedback.ledger.migrations.versions as versions
from feedback.ledger import Ledger, LedgerError, LedgerTooNew, LedgerUnavailable
from feedback.ledger.migrate import HEAD
from feedback.ledger.tables import metadata, to_us
from tests.ledger.builders import shown


def test_migrations_make_the_tables_of_the_code(ledger):
    def difference(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, metadata)

    assert ledger._database.read(difference) == []


def test_head_is_the_newest_migration():
    found = sorted(path.stem for path in Path(versions.__file__).parent.glob("r*.py"))
    assert found[-1].startswith(f"r{HEAD}_")


def test_pairs_of_an_older_ledger_still_count(url, ledger):
    ledger._database.write(lambda c: c.execute(text("ALTER TABLE pairs DROP COLUMN blind")))
    ledger._database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '0006'")))
    ledger._database.write(
        lambda c: c.execute(
            text("INSERT INTO conversations (conversation_id, voter, began_us) VALUES ('talk_1', 'v_ann', 0)")
        )
    )
    pair = shown()
    old = {"shown": to_us(pair.shown_at), "event": pair.to_bytes()}
    into = "INSERT INTO pairs (pair_id, conversation_id, voter, adapter_a, answers, contenders, shown_us, event)"
    given = " VALUES ('pair_1', 'talk_1', 'v_ann', 'policy-000001', 2, 'self-play', :shown, :event)"
    ledger._database.write(lambda c: c.execute(text(into + given), old))
    again = Ledger.open(url)
    again.record_vote(pair_id="pair_1", voter="v_ann", choice="a")
    assert len(again.duels("policy-000001", None, pair.shown_at)) == 1
    again.close()


def test_opening_again_keeps_everything(url, ledger):
    ledger.record_pair(shown())
    again = Ledger.open(url)
    assert again.pair("pair_1") is not None
    again.close()


def test_a_second_start_needs_no_alembic(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    Ledger.open(url).close()
    code = (
        f"import sys; from feedback.ledger import Ledger; Ledger.open({url!r}).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_ledger_of_a_newer_hustings_is_refused_and_left_alone(url, ledger):
    ledger._database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(LedgerTooNew, match="'9999'"):
        Ledger.open(url)


def _open(url, results):
    try:
        ledger = Ledger.open(url)
        results.put(ledger.counts().pairs)
        ledger.close()
    except Exception as error:  # noqa: BLE001  whatever it is, the parent shows it
        results.put(repr(error))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_processes_that_start_together_migrate_once(kind, tmp_path, request):
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    else:
        url = request.getfixturevalue("postgres").new_database("together")
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    started = [spawn.Process(target=_open, args=(url, results)) for _ in range(4)]
    for process in started:
        process.start()
    assert [results.get(timeout=60) for _ in started] == [0] * 4
    for process in started:
        process.join(30)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite://", "must outlive the process"),
        ("sqlite:///:memory:", "must outlive the process"),
        ("mysql://localhost/x", "not 'mysql'"),
        ("nonsense", "no SQLAlchemy URL"),
    ],
)
def test_an_address_of_the_wrong_kind_is_refused(url, complaint):
    with pytest.raises(LedgerError, match=complaint):
        Ledger.open(url)


def test_a_file_that_is_no_database_says_so(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"this is not a database, only a text file" * 50)
    with pytest.raises(LedgerUnavailable, match="no SQLite database"):
        Ledger.open(f"sqlite:///{path}")


def test_a_postgres_that_is_not_there_says_what_to_do_and_keeps_the_password():
    with pytest.raises(LedgerUnavailable, match="start the database") as caught:
        Ledger.open("postgresql://me:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(caught.value)


def test_a_postgres_that_the_network_ate_is_given_up_in_half_a_minute_unless_the_url_says_otherwise(postgres):
    def told(url):
        ledger = Ledger.open(url)
        try:
            driver = ledger._database.write(lambda connection: connection.connection.driver_connection)
            found = driver.info.get_parameters()
        finally:
            ledger.close()
        return {name: found.get(name) for name in ("keepalives_idle", "tcp_user_timeout")}

    url = postgres.new_database("patient")
    assert told(url) == {"keepalives_idle": "15", "tcp_user_timeout": "30000"}
    more = "&" if "?" in url else "?"
    assert told(f"{url}{more}tcp_user_timeout=90000") == {"keepalives_idle": "15", "tcp_user_timeout": "90000"}


def test_sqlite_is_set_to_lose_nothing(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")

    def settings(connection):
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert ledger._database.write(settings) == ["wal", 2, 1, 15000]
    ledger.close()
