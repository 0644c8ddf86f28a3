"""Failures of the dataset.

DatasetError
├── DatasetFull        no room, or no right, to write
├── DatasetCorrupt     a file is not what it was when it was written
└── UnknownSnapshot    no snapshot of that id
    ├── SnapshotPurged its tables are gone, because somebody in them was forgotten
    └── SnapshotDropped its tables are gone, because it is old and they took room
"""

from __future__ import annotations

import errno
from pathlib import Path


class DatasetError(Exception):
    """Base of the dataset's failures; the message names the file and what to do."""


class DatasetFull(DatasetError):
    """The disk is full, or the folder can't be written."""


class DatasetCorrupt(DatasetError):
    """A file's bytes are not those that its name or manifest promises."""


class UnknownSnapshot(DatasetError):
    """There is no snapshot of that id."""


class SnapshotPurged(UnknownSnapshot):
    """The snapshot's tables are gone, because somebody in them asked to be forgotten."""


class SnapshotDropped(UnknownSnapshot):
    """The snapshot is old, and its tables were dropped to have room; manifest and ids are there."""


def from_os(error: OSError, path: Path) -> DatasetError:
    """What a failed write means for whoever has to mend it."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DatasetFull(f"no space left to write {path}; free some: nothing is lost, the records are read again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return DatasetFull(f"{path} can't be written ({error.strerror}); give this user the right to write there")
    return DatasetError(f"{path}: {error.strerror or error}")
