"""Manifests of adapters, of the ledger and of their folders: read once, for they never change."""

from __future__ import annotations

import threading
from pathlib import Path

from feedback.contracts import AdapterManifest
from feedback.ledger import Ledger

MANIFEST = "manifest.json"
Stamp = tuple[int, int]


class Manifests:
    """Every adapter's manifest that the folder or the ledger has. For any thread.

    Without probes and configuration, which are nearly all of a manifest, so that hundreds can be kept.

    Args:
        adapters: folder of published adapters.
    """

    def __init__(self, ledger: Ledger, adapters: Path) -> None:
        self._ledger = ledger
        self._adapters = adapters
        self._lock = threading.Lock()
        self._change = -1
        self._of_ledger: dict[str, AdapterManifest] = {}
        self._of_files: dict[Path, tuple[Stamp, AdapterManifest]] = {}

    def __call__(self) -> dict[str, AdapterManifest]:
        """Those that there are now, by name; of a name that both have the folder's."""
        with self._lock:
            self._read_ledger()
            self._read_files()
            return self._of_ledger | {path.parent.name: one for path, (_, one) in self._of_files.items()}

    def _read_ledger(self) -> None:
        change = self._ledger.release_totals().change  # before the releases: one that comes between is read again
        if change != self._change:
            releases = self._ledger.releases()
            self._of_ledger = {one.name: _lean(one.manifest) for one in releases if one.manifest is not None}
            self._change = change

    def _read_files(self) -> None:
        found: dict[Path, tuple[Stamp, AdapterManifest]] = {}
        for path in sorted(self._adapters.glob(f"policy-*/{MANIFEST}")):
            try:
                about = path.stat()
                stamp, known = (about.st_mtime_ns, about.st_size), self._of_files.get(path)
                found[path] = known if known is not None and known[0] == stamp else (stamp, read_manifest(path))
            except FileNotFoundError:  # taken away since it was listed
                continue
        self._of_files = found


def read_manifest(path: Path) -> AdapterManifest:
    """The manifest of a file.

    Raises:
        OSError: it can't be read.
        ValidationError: it is none.
    """
    return _lean(AdapterManifest.model_validate_json(path.read_bytes()))


def _lean(manifest: AdapterManifest) -> AdapterManifest:
    return manifest.model_copy(update={"probes": (), "config": {}})
