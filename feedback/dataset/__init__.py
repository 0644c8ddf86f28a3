"""The preference dataset: immutable part files, and content-addressed snapshots made of them."""

from __future__ import annotations

from feedback.dataset.dataset import Dataset, NewData
from feedback.dataset.errors import (
    DatasetCorrupt,
    DatasetError,
    DatasetFull,
    SnapshotDropped,
    SnapshotPurged,
    UnknownSnapshot,
)
from feedback.dataset.snapshots import Snapshot, SnapshotManifest
from feedback.dataset.tombstones import Covering, ForgottenVoter
from feedback.dataset.weighing import Weigh

__all__ = [
    "Covering",
    "Dataset",
    "DatasetCorrupt",
    "DatasetError",
    "DatasetFull",
    "ForgottenVoter",
    "NewData",
    "Snapshot",
    "SnapshotDropped",
    "SnapshotManifest",
    "SnapshotPurged",
    "UnknownSnapshot",
    "Weigh",
]
