"""Releases in the ledger: where each adapter stands, how it came there, and which one is in office."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, insert, select, text, update

from feedback.contracts import GATE_KEY, RELEASE_TOPIC, AdapterManifest, GateChanged, ReleaseChanged, ReleaseState
from feedback.ledger import outbox
from feedback.ledger.errors import ReleaseConflict
from feedback.ledger.kept_manifests import ReadManifest, read_manifest
from feedback.ledger.tables import from_us, gate_history, release_history, releases, to_us

_ADVISORY_LOCK = 0x48555355
"""Key under which processes on one PostgreSQL take turns to move releases."""


@dataclass(frozen=True, slots=True)
class Release:
    """Where an adapter stands.

    Attributes:
        manifest: None until a change has brought it, and where it can't be read. One of many has it without probes and
            configuration (`AdapterManifest.lean`).
        unreadable: why it can't be read; None where it can, or where there is none.
    """

    name: str
    state: ReleaseState
    manifest: AdapterManifest | None
    reason: str
    actor: str
    updated_at: datetime
    unreadable: str | None = None


def record(connection: Connection, change: ReleaseChanged, manifest: AdapterManifest | None) -> None:
    """Add a change to the history, make it the adapter's state, and tell the event log."""
    value = change.to_bytes()
    event_id = f"release_{uuid4().hex}"
    number = connection.execute(
        insert(release_history)
        .values(name=change.name, event_id=event_id, event=value)
        .returning(release_history.c.change)
    ).scalar_one()
    state = {
        "state": change.after.value,
        "reason": change.reason,
        "actor": change.actor,
        "updated_us": to_us(change.changed_at),
        "change": number,
    }
    if manifest is not None:
        state["manifest"] = manifest.model_dump_json()
    known = connection.execute(update(releases).where(releases.c.name == change.name).values(state))
    if known.rowcount == 0:
        connection.execute(insert(releases).values(name=change.name, **state))
    outbox.enqueue(connection, event_id=event_id, topic=RELEASE_TOPIC, key=change.name, value=value)


def require_states(connection: Connection, changes: Sequence[ReleaseChanged]) -> None:
    """Pass where every release that changes is in the state that its first change begins at; others wait until the end.

    Who takes office does so from the present office-holder, which is among those that change, or from the base.

    Raises:
        ReleaseConflict: one isn't: another process has moved it.
    """
    if connection.dialect.name == "postgresql":  # SQLite's transactions that write come one after another anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    expected = {change.name: change.before for change in reversed(changes)}
    for name, before in expected.items():
        state = connection.execute(select(releases.c.state).where(releases.c.name == name)).scalar_one_or_none()
        if state != before:
            raise ReleaseConflict(name, before)
    holder = office(connection)
    if holder not in {None, *expected} and any(change.after is ReleaseState.IN_OFFICE for change in changes):
        raise ReleaseConflict(str(holder), "out of office")


def record_gate(connection: Connection, change: GateChanged) -> None:
    """Add a pause, or its end, to the history and tell the event log."""
    value = change.to_bytes()
    event_id = f"gate_{uuid4().hex}"
    connection.execute(insert(gate_history).values(event_id=event_id, event=value))
    outbox.enqueue(connection, event_id=event_id, topic=RELEASE_TOPIC, key=GATE_KEY, value=value)


def gate(connection: Connection) -> list[GateChanged]:
    """Pauses and their ends, the oldest first."""
    query = select(gate_history.c.event).order_by(gate_history.c.change)
    return [GateChanged.from_bytes(event) for event in connection.execute(query).scalars()]


def one(connection: Connection, name: str) -> Release | None:
    """This release, or None."""
    row = connection.execute(select(releases).where(releases.c.name == name)).one_or_none()
    return None if row is None else read_release(row, read_manifest(row.manifest))


def office(connection: Connection) -> str | None:
    """The adapter in office; None when it is the base. Of two that say so, the later change counts."""
    found: str | None = connection.execute(
        select(releases.c.name)
        .where(releases.c.state == ReleaseState.IN_OFFICE.value)
        .order_by(releases.c.change.desc())
        .limit(1)
    ).scalar_one_or_none()
    return found


def history(connection: Connection, name: str | None) -> list[ReleaseChanged]:
    """Changes of one adapter, or of all, the oldest first."""
    query = select(release_history.c.event).order_by(release_history.c.change)
    if name is not None:
        query = query.where(release_history.c.name == name)
    return [_read(event) for event in connection.execute(query).scalars()]


@lru_cache(maxsize=1 << 16)
def _read(event: bytes) -> ReleaseChanged:
    """A change, which never changes: servings ask for the whole history every few seconds, for ever."""
    return ReleaseChanged.from_bytes(event)


def read_release(row: Row[Any], manifest: ReadManifest) -> Release:
    """A row of `releases`, and its manifest."""
    return Release(
        name=row.name,
        state=ReleaseState(row.state),
        manifest=manifest.manifest,
        reason=row.reason,
        actor=row.actor,
        updated_at=from_us(row.updated_us),
        unreadable=manifest.unreadable,
    )
