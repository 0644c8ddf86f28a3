"""Looking through all snapshots, of which one that is damaged keeps nobody from the others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feedback.dataset import snapshots
from feedback.dataset.errors import DatasetCorrupt, UnknownSnapshot
from feedback.dataset.snapshots import SnapshotManifest

Unreadable = dict[str, str]
"""Ids of snapshots, and why they can't be read."""


def manifests(root: Path) -> tuple[list[SnapshotManifest], Unreadable]:
    """Manifests of every snapshot, purged ones too, by id; and which can't be read."""
    found: list[SnapshotManifest] = []
    unreadable: Unreadable = {}
    for folder in snapshots.folders(root):
        try:
            found.append(snapshots.load_manifest(folder))
        except (DatasetCorrupt, UnknownSnapshot) as error:
            unreadable[folder.name] = str(error)
    return found, unreadable


def holding(root: Path, vote_id: str) -> tuple[list[str], Unreadable]:
    """Ids of the snapshots that hold a vote; and which can't be read."""
    wanted = pa.array([vote_id], pa.string())
    found: list[str] = []
    unreadable: Unreadable = {}
    for folder in snapshots.folders(root):
        try:
            if pc.any(pc.is_in(snapshots.ids_in(folder, "vote_id"), value_set=wanted)).as_py():
                found.append(folder.name)
        except DatasetCorrupt as error:
            unreadable[folder.name] = str(error)
    return found, unreadable
