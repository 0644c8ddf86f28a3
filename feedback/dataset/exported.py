"""Where snapshots were exported to, a line an export in `exports.jsonl`: forgetting tells by it what it can't reach."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feedback.contracts import utc_now
from feedback.dataset.errors import DatasetCorrupt, from_os

FILE = "exports.jsonl"
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class Exported(BaseModel):
    """An export: which snapshot went where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    snapshot: str
    dest: str
    format: str
    at: datetime = Field(default_factory=utc_now)


def remember(root: Path, exported: Exported) -> None:
    """Add a line, durably. Who may only read the dataset has a copy of it, and nobody here remembers for them.

    Raises:
        DatasetFull: no room.
    """
    line = b"\n" + exported.model_dump_json().encode() + b"\n"  # a crash may have cut off the line before
    try:
        with (root / FILE).open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise from_os(error, root / FILE) from error


def places_of(root: Path, snapshots: Collection[str]) -> tuple[str, ...]:
    """Where these snapshots were exported to, each place once, the first first.

    Raises:
        DatasetCorrupt: nobody can tell.
    """
    try:
        lines = (root / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DatasetCorrupt(
            f"{root / FILE}, which tells where exports went, can't be read: {error.strerror}"
        ) from error
    found: dict[str, None] = {}
    for line in filter(None, lines):
        try:
            exported = Exported.model_validate_json(line)
        except ValidationError:
            continue  # a crash cut it off; its export has not begun
        if exported.snapshot in snapshots:
            found[exported.dest] = None
    return tuple(found)
