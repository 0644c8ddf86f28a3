"""What a running `hustings up` leaves in its data folder: a lock against a second one, and where to reach it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.errors import AlreadyRunning, DeployError
from feedback.paths import DataPaths


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
        handle = os.open(paths.run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DeployError(
            f"the data folder {paths.root} can't be used: {error.strerror or error}; name another with --data-dir"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunning(
                f"another `hustings up` (process {holder}) runs on {paths.root}; "
                "stop it, or give another folder with --data-dir"
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
        os.kill(presence.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return presence


def _file(paths: DataPaths) -> Path:
    return paths.run / "up.json"
