"""What a running `hustings up` leaves in its data folder: a lock against a second one, and where to reach it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.errors import AlreadyRunning, DeployError
from feedback.paths import DataPaths

_WHOLE_FILE = struct.Struct("hhqqi4x")
"""C's `struct flock` on 64-bit Linux: kind, whence, start, length (0: all), process. Such locks belong to the open
file, as flock's do, but can be asked about without being taken: who asks keeps no `up` from starting."""


@dataclass(frozen=True, slots=True)
class Presence:
    """Addresses and process ids of a running `up`."""

    pid: int
    serve_url: str
    kafka: str
    processes: Mapping[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def hold(paths: DataPaths) -> Iterator[None]:
    """Hold the data folder for one `up`; the kernel frees it however the process ends.

    Raises:
        AlreadyRunning: another holds it; the message names its process id.
        DeployError: the folder can't be made or written.
    """
    try:
        paths.create()
        handle = os.open(_lock_file(paths), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DeployError(
            f"the data folder {paths.root} can't be used: {error.strerror or error}; name another with --data-dir"
        ) from error
    try:
        try:
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunning(
                f"another `hustings up` (process {holder}) runs on {paths.root}; "
                "stop it, or give another folder with --data-dir"
            ) from error
        except OSError as error:
            raise DeployError(
                f"the file system of {paths.root} knows no locks ({error.strerror or error}); "
                "name a folder on another with --data-dir"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            _file(paths).unlink(missing_ok=True)
    finally:
        os.close(handle)


def write(paths: DataPaths, presence: Presence) -> None:
    """Tell others where this `up` is."""
    passing = _file(paths).with_suffix(".part")
    passing.write_text(json.dumps(asdict(presence)), encoding="utf-8")
    passing.replace(_file(paths))


def read(paths: DataPaths) -> Presence | None:
    """Where an `up` of this data folder is, if one runs."""
    try:
        presence = Presence(**json.loads(_file(paths).read_text(encoding="utf-8")))
        with contextlib.suppress(PermissionError):  # somebody else's process
            os.kill(presence.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    # One that was killed left its file, and another process may have its number: after a new start, or in a container.
    return presence if _is_held(paths) else None


def _is_held(paths: DataPaths) -> bool:
    """Whether an `up` holds the folder; yes where that can't be asked, as on a file system without locks."""
    try:
        handle = os.open(_lock_file(paths), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        found = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return True
    finally:
        os.close(handle)
    kind, *_ = _WHOLE_FILE.unpack(found)
    return bool(kind != fcntl.F_UNLCK)


def _lock_file(paths: DataPaths) -> Path:
    return paths.run / "lock"


def _file(paths: DataPaths) -> Path:
    return paths.run / "up.json"
