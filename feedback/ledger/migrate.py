"""Bring a database to the schema that this code knows, with the Alembic migrations that lie beside it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from feedback.ledger.database import Database
from feedback.ledger.errors import LedgerTooNew

HEAD = "0007"
"""The newest revision; a test compares it with the folder of migrations."""

_ADVISORY_LOCK = 0x48555354
"""Key under which processes that start together on one PostgreSQL take turns to migrate."""


def migrate(database: Database) -> None:
    """Run the missing migrations, in one transaction, once, however many processes start together.

    Raises:
        LedgerTooNew: the database is at a revision that this code does not know.
        LedgerUnavailable: the database can't be reached.
    """
    if database.read(_revision) != HEAD:
        database.write(_upgrade)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: Connection) -> None:
    # Alembic takes a quarter of a second to import, and most starts don't need it.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util.exc import CommandError

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    found = _revision(connection)
    try:
        ScriptDirectory.from_config(config).get_revision(found or "base")
    except CommandError as error:
        raise LedgerTooNew(
            f"the ledger is at revision {found!r} and this Hustings knows none after {HEAD!r}: upgrade Hustings"
        ) from error
    command.upgrade(config, "head")
