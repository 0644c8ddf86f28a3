"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write beside, sync, rename, sync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    except OSError:  # a full disk: give back what the attempt took
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, record: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def appear(final: Path, marker: str, fill: Callable[[Path], None]) -> Path:
    """Make a folder that is there whole or not at all: filled under another name, synced, renamed.

    A folder that holds `marker` already is kept as it is. A failed attempt (a full disk) leaves nothing behind.
    """
    if (final / marker).is_file():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    work = final.with_name(f".{final.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        fill(work)
        for path in work.iterdir():
            sync(path)
        sync(work)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    except Exception:  # whatever it was: give back what the attempt took
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync(final.parent)
    return final


def sync(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
