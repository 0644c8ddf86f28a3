"""Manifests of adapters, of the ledger and of their folders: read once, for they never change."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from feedback.contracts import ADAPTER_NAME_PATTERN, AdapterManifest, ContractError
from feedback.ledger import Ledger

MANIFEST = "manifest.json"
Stamp = tuple[int, int]


class UnreadableManifest(ValueError):
    """A file that should be a manifest can't be read as one; the message says why."""


@dataclass(frozen=True, slots=True)
class FoundManifests:
    """What there is.

    Attributes:
        readable: manifests by adapter; of a name that folder and ledger have the folder's.
        unreadable: adapters of which neither has one that can be read, and why.
    """

    readable: dict[str, AdapterManifest]
    unreadable: Mapping[str, str]


class Manifests:
    """Every adapter's manifest that the folder or the ledger has. For any thread.

    Without probes and configuration, which are nearly all of a manifest, so that hundreds can be kept. One that can't
    be read is named, keeps nobody from the others, and is tried again each time.

    Args:
        adapters: folder of published adapters.
        watch: called when other manifests can't be read than at the last look, with all that can't, and why.
    """

    def __init__(
        self, ledger: Ledger, adapters: Path, *, watch: Callable[[Mapping[str, str]], None] | None = None
    ) -> None:
        self._ledger = ledger
        self._adapters = adapters
        self._watch = watch
        self._lock = threading.Lock()
        self._change = -1
        self._of_ledger: dict[str, AdapterManifest] = {}
        self._faults_of_ledger: dict[str, str] = {}
        self._of_files: dict[Path, tuple[Stamp, AdapterManifest]] = {}
        self._faults_of_files: dict[str, str] = {}

    def __call__(self) -> FoundManifests:
        """Those that there are now."""
        with self._lock:
            before = self._faults_of_ledger | self._faults_of_files
            self._read_ledger()
            self._read_files()
            readable = self._of_ledger | {path.parent.name: one for path, (_, one) in self._of_files.items()}
            faults = self._faults_of_ledger | self._faults_of_files
            if faults != before and self._watch is not None:
                self._watch(faults)
            return FoundManifests(readable, {name: why for name, why in sorted(faults.items()) if name not in readable})

    def _read_ledger(self) -> None:
        change = self._ledger.release_totals().change  # before the releases: one that comes between is read again
        if change != self._change:
            releases = self._ledger.releases()
            self._of_ledger = {one.name: one.manifest for one in releases if one.manifest is not None}
            self._faults_of_ledger = {one.name: one.unreadable for one in releases if one.unreadable is not None}
            self._change = change

    def _read_files(self) -> None:
        found: dict[Path, tuple[Stamp, AdapterManifest]] = {}
        faults: dict[str, str] = {}
        try:
            names = adapter_names(self._adapters)
        except OSError as error:
            names, faults["the adapters' folder"] = [], f"{self._adapters}: {error.strerror or error}"
        for name in names:
            path = self._adapters / name / MANIFEST
            try:
                about = path.stat()
                stamp, known = (about.st_mtime_ns, about.st_size), self._of_files.get(path)
                found[path] = known if known is not None and known[0] == stamp else (stamp, read_manifest(path))
            except OSError as error:
                if path.parent.exists():  # else it was taken away since it was listed
                    faults[name] = f"{path}: {error.strerror or error}"
            except UnreadableManifest as error:
                faults[name] = f"{path}: {error}"
        self._of_files, self._faults_of_files = found, faults


def adapter_names(root: Path) -> list[str]:
    """What is named as a published adapter is, the oldest first; nothing where there is no folder yet.

    Raises:
        OSError: the folder can't be read.
    """
    try:
        return sorted(entry.name for entry in root.iterdir() if re.fullmatch(ADAPTER_NAME_PATTERN, entry.name))
    except FileNotFoundError:
        return []


def read_manifest(path: Path) -> AdapterManifest:
    """The manifest of a file, lean.

    Raises:
        OSError: it can't be read.
        UnreadableManifest: it is none.
    """
    if not path.is_file():  # a pipe would never end
        raise UnreadableManifest("no plain file")
    try:
        return AdapterManifest.from_bytes(path.read_bytes()).lean()
    except ContractError as error:
        raise UnreadableManifest(str(error)) from error
