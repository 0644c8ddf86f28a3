"""The trainer as a process: its place behind serving, its lock, its signals, and what it says when it runs short."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from feedback.paths import DataPaths
from feedback.priority import step_back


def go_second(niceness: int) -> None:
    """Let serving go first. OpenMP must be told before torch loads it: spinning threads cost others a factor of ten."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    step_back(niceness)


@contextmanager
def only_trainer(paths: DataPaths) -> Iterator[None]:
    """Hold the data folder's trainer lock; the kernel frees it when the process dies.

    Raises:
        BlockingIOError: another trainer holds it.
    """
    with (paths.train / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        handle.write(f"{os.getpid()} since {datetime.now(UTC).isoformat()}\n")
        handle.flush()
        yield


@contextmanager
def signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask for a stop at the next safe point; a second Ctrl-C is immediate."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shortage(error: BaseException) -> str | None:
    """One line for want of disk or memory; None for anything else."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return "out of memory: close other programs, or lower train.ppo.micro_tokens, pass_tokens and rollout.batch"
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full ({error.filename or 'data folder'}): make room"
    return None
