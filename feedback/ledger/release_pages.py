"""Releases a few at a time: there is one for each cycle that ever published, with a manifest of many numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, Select, case, func, select

from feedback.contracts import ReleaseState
from feedback.ledger.database import Database
from feedback.ledger.offices import Release, read_release
from feedback.ledger.tables import releases

_AT_WORK = {ReleaseState.IN_OFFICE.value: 0, ReleaseState.CANARY.value: 1}
_WAITING = {ReleaseState.VERIFIED.value: 2, ReleaseState.CANDIDATE.value: 3}


@dataclass(frozen=True, slots=True)
class ReleasePage:
    """Releases in a row, the newest adapter first.

    Attributes:
        next: give this as `before` for those that follow; None where there are no more.
    """

    releases: tuple[Release, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class ReleaseTotals:
    """All releases.

    Attributes:
        change: number of the last change; the same number, the same releases.
    """

    total: int
    change: int


class ReleasePages:
    """What a ledger tells of releases without reading all of them."""

    _database: Database

    def release_page(self, before: str | None = None, limit: int = 100) -> ReleasePage:
        """The newest adapters, or those that came before this one."""
        return self._database.read(lambda connection: page(connection, before, limit))

    def standing_releases(self, limit: int) -> list[Release]:
        """Who is in office, canary, or waits to be: these first, then the newest that wait; so many at most."""
        return self._database.read(lambda connection: standing(connection, limit))

    def releases_in(self, states: Collection[ReleaseState]) -> list[Release]:
        """All releases in these states, the newest adapter last."""
        return self._database.read(lambda connection: within(connection, states))

    def release_totals(self) -> ReleaseTotals:
        """How many there are, and how far their changes have come."""
        return self._database.read(totals)


def page(connection: Connection, before: str | None, limit: int) -> ReleasePage:
    """See `ReleasePages.release_page`."""
    query = select(releases).order_by(releases.c.name.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(releases.c.name < before)
    found = _read(connection, query)
    more = len(found) > limit
    return ReleasePage(tuple(found[:limit]), found[limit - 1].name if more else None)


def standing(connection: Connection, limit: int) -> list[Release]:
    """See `ReleasePages.standing_releases`."""
    order = _AT_WORK | _WAITING
    query = (
        select(releases)
        .where(releases.c.state.in_(order))
        .order_by(case(order, value=releases.c.state), releases.c.name.desc())
        .limit(limit)
    )
    return _read(connection, query)


def within(connection: Connection, states: Collection[ReleaseState]) -> list[Release]:
    """See `ReleasePages.releases_in`."""
    wanted = [state.value for state in states]
    return _read(connection, select(releases).where(releases.c.state.in_(wanted)).order_by(releases.c.name))


def totals(connection: Connection) -> ReleaseTotals:
    """See `ReleasePages.release_totals`."""
    total, change = connection.execute(select(func.count(), func.max(releases.c.change))).one()
    return ReleaseTotals(total, change or 0)


def _read(connection: Connection, query: Select[tuple[object, ...]]) -> list[Release]:
    return [read_release(row) for row in connection.execute(query)]
