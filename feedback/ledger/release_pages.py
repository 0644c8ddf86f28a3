"""Releases a few at a time: there is one for each cycle that ever published, with a manifest of many numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, case, func, select

from feedback.contracts import ReleaseState
from feedback.ledger.database import Database
from feedback.ledger.kept_manifests import KeptManifests
from feedback.ledger.offices import Release, read_release
from feedback.ledger.tables import releases

_AT_WORK = {ReleaseState.IN_OFFICE.value: 0, ReleaseState.CANARY.value: 1}
_ROWS = select(*(column for column in releases.c if column is not releases.c.manifest))
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
    _manifests: KeptManifests

    def releases(self) -> list[Release]:
        """All releases by name, the newest adapter last."""
        return self._releases(_ROWS.order_by(releases.c.name))

    def release_page(self, before: str | None = None, limit: int = 100) -> ReleasePage:
        """The newest adapters, or those that came before this one."""
        query = _ROWS.order_by(releases.c.name.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(releases.c.name < before)
        found = self._releases(query)
        more = len(found) > limit
        return ReleasePage(tuple(found[:limit]), found[limit - 1].name if more else None)

    def standing_releases(self, limit: int) -> list[Release]:
        """Who is in office, canary, or waits to be: these first, then the newest that wait; so many at most."""
        order = _AT_WORK | _WAITING
        place = case(order, value=releases.c.state)
        return self._releases(
            _ROWS.where(releases.c.state.in_(order)).order_by(place, releases.c.name.desc()).limit(limit)
        )

    def releases_in(self, states: Collection[ReleaseState]) -> list[Release]:
        """All releases in these states, the newest adapter last."""
        wanted = [state.value for state in states]
        return self._releases(_ROWS.where(releases.c.state.in_(wanted)).order_by(releases.c.name))

    def release_totals(self) -> ReleaseTotals:
        """How many there are, and how far their changes have come."""
        return self._database.read(totals)

    def _releases(self, query: Select[Any]) -> list[Release]:
        def work(connection: Connection) -> list[Release]:
            rows = connection.execute(query).all()
            manifests = self._manifests.of(connection, [(row.name, row.change) for row in rows])
            return [read_release(row, manifests[row.name]) for row in rows]

        return self._database.read(work)


def totals(connection: Connection) -> ReleaseTotals:
    """See `ReleasePages.release_totals`."""
    total, change = connection.execute(select(func.count(), func.max(releases.c.change))).one()
    return ReleaseTotals(total, change or 0)
