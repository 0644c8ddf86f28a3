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

from feedback.dataset.errors import DatasetFull
from feedback.paths import DataPaths
from feedback.priority import short_waits, step_back
from train.config import TrainConfig
from train.memory import no_memory


def go_second(niceness: int) -> None:
    """Let serving go first. OpenMP must be told before torch loads it."""
    os.environ.update(short_waits(os.environ))
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


NO_ROOM = ("No space left on device", "Disk quota exceeded", "File too large")
"""How libraries that raise errors of their own (safetensors, pyarrow) tell of it."""
LOWER = {
    "features": ("reward", "batch_tokens"),
    "reward": ("reward", "batch_tokens"),
    "sft": ("ppo", "micro_tokens"),
    "sample": ("rollout", "batch"),
    "score": ("ppo", "pass_tokens"),
    "old": ("ppo", "pass_tokens"),
    "update": ("ppo", "micro_tokens"),
    "finals": ("ppo", "pass_tokens"),
    "evaluate": ("ppo", "pass_tokens"),
}
"""The setting that each phase's need of memory follows."""


def shortage(error: BaseException, config: TrainConfig, phase: str) -> str | None:
    """One line for want of disk or memory, which names what to change; None for anything else.

    Args:
        error: what ended the cycle.
        config: the cycle's.
        phase: that it was in, or within PPO the part of an iteration.
    """
    text = str(error)
    if no_memory(error):
        return _out_of_memory(config, phase)
    if isinstance(error, DatasetFull):  # its own line tells a full disk from one that may not be written
        return f"{text}; the cycle then goes on, and the adapter in office stays"
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if full or any(sign in text for sign in NO_ROOM):
        where = getattr(error, "filename", None) or "in the data folder"
        return f"the disk is full ({where}): make room; the cycle then goes on, and the adapter in office stays"
    return None


def _out_of_memory(config: TrainConfig, phase: str) -> str:
    section, key = LOWER.get(phase, ("ppo", "micro_tokens"))
    now = getattr(getattr(config, section), key)
    whole = ', or train with train.tuning = "lora"' if config.tuning == "full" else ""
    return (
        f"out of memory ({phase}): lower train.{section}.{key} (now {now}){whole}, or close other programs; "
        "the cycle then goes on, and the adapter in office stays"
    )
