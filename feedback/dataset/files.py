"""Writing so that a crash at any moment leaves either the whole file or none.

Everything is written under a temporary name, flushed to the disk, renamed, and its folder flushed. Temporary names
start with a dot; a reader never looks at them, and the next writer clears those that a crash left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from feedback.dataset.errors import from_os

TEMPORARY_PREFIX = ".writing-"
STALE_AFTER_S = 3600.0


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Make renames within the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and its entry in the one above durable.

    Raises:
        DatasetError: it can't be made.
    """
    try:
        if folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        flush_folder(folder.parent)
    except OSError as error:
        raise from_os(error, folder) from error


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole and durable.

    Raises:
        DatasetFull: no room.
        DatasetError: anything else that the file system refuses.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        discard(temporary)
        raise from_os(error, path) from error


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        DatasetFull: no right to.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise from_os(error, path) from error


def discard(path: Path) -> None:
    """Remove what a failed attempt has left, if that is possible: where it failed because nothing may be written any
    more (a file system that its errors made read-only), nothing can be removed either, and the failure is what counts.
    """
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone among all, in this process and others, who lock this folder; not to be entered twice.

    Raises:
        DatasetFull: no right, or no room, to write beside it.
    """
    try:
        descriptor = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise from_os(error, folder) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def folder_in_the_making(parent: Path) -> Iterator[tuple[Path, Callable[[str], Path]]]:
    """A temporary folder, and what publishes it under a name. Unpublished, it is removed at the end.

    Publishing under a name that exists already keeps what is there (names are of content).
    """
    temporary = parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"

    def publish(name: str) -> Path:
        final = parent / name
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        flush_folder(temporary)
        try:
            temporary.rename(final)
        except OSError as error:
            # Another process published the same content, before or in this very moment.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            flush_folder(parent)
        return final

    try:
        temporary.mkdir()
        yield temporary, publish
    except OSError as error:
        raise from_os(error, parent) from error
    finally:
        discard(temporary)


def clear_stale(folder: Path, older_than_s: float = STALE_AFTER_S) -> int:
    """Remove temporary files and folders that a crash left long ago; returns how many. A young one may be in use, and
    so may a folder with anything young in it: a large snapshot takes more than an hour. What this process may not
    remove, as one that only reads, is for the next writer.
    """
    cleared = 0
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            changed = max(one.stat().st_mtime for one in (path, *path.rglob("*")))
            if time.time() - changed < older_than_s:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            cleared += 1
        except (FileNotFoundError, PermissionError):
            continue  # another process cleared it in the same moment, or it isn't ours
        except OSError as error:
            if error.errno != errno.EROFS:
                raise from_os(error, path) from error
    return cleared
