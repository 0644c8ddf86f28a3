"""Manifests as the ledger has them, parsed once: pages ask for the same hundreds again and again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from feedback.contracts import AdapterManifest, ContractError
from feedback.ledger.tables import releases

AT_ONCE = 50
"""Manifests that are fetched at once: each may have megabytes of probes."""


@dataclass(frozen=True, slots=True)
class ReadManifest:
    """A manifest, or why it can't be read; neither where the ledger has none."""

    manifest: AdapterManifest | None = None
    unreadable: str | None = None


def read_manifest(told: str | None) -> ReadManifest:
    """Parse what the ledger has."""
    if told is None:
        return ReadManifest()
    try:
        return ReadManifest(AdapterManifest.from_bytes(told.encode()))
    except ContractError as error:
        return ReadManifest(unreadable=f"the ledger's copy: {error}")


class KeptManifests:
    """Lean manifests of one ledger's releases, each until its release changes. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[int, ReadManifest]] = {}

    def of(self, connection: Connection, changes: Sequence[tuple[str, int]]) -> dict[str, ReadManifest]:
        """Those of the releases of these names.

        Args:
            changes: names, each with the number of the release's last change: the same number, the same manifest.
        """
        with self._lock:
            news = [(name, change) for name, change in changes if self._kept.get(name, (None,))[0] != change]
            for start in range(0, len(news), AT_ONCE):
                self._fetch(connection, dict(news[start : start + AT_ONCE]))
            return {name: self._kept[name][1] for name, _ in changes}

    def _fetch(self, connection: Connection, changes: dict[str, int]) -> None:
        query = select(releases.c.name, releases.c.manifest).where(releases.c.name.in_(changes))
        for name, told in connection.execute(query):
            found = read_manifest(told)
            lean = None if found.manifest is None else found.manifest.lean()
            self._kept[name] = (changes[name], ReadManifest(lean, found.unreadable))
