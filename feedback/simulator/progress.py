"""How a simulation shows how far it is: a bar in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = structlog.get_logger(__name__)

LOG_EVERY_S = 10.0


class Progress(Protocol):
    """Is told of every vote that counts."""

    def advance(self) -> None:
        """One vote more."""


@contextmanager
def make_progress(total: int, *, wanted: bool | None) -> Iterator[Progress]:
    """A bar on stderr, a log, or nothing.

    Args:
        wanted: True for a bar, False for silence, None for a bar in a terminal and a log elsewhere.
    """
    console = Console(stderr=True)
    if wanted or (wanted is None and console.is_terminal):
        with _Bar(console, total) as bar:
            yield bar
    else:
        yield _Log(total, silent=wanted is False)


class _Rate:
    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._began = time.monotonic()

    def per_minute(self) -> float:
        return 60 * self.done / max(time.monotonic() - self._began, 1e-9)


class _Bar:
    def __init__(self, console: Console, total: int) -> None:
        self._rate = _Rate(total)
        self._bar = RichProgress(
            TextColumn("voting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} votes a minute"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("voting", total=total, rate=0.0)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One vote more."""
        self._rate.done += 1
        self._bar.update(self._task, completed=self._rate.done, rate=self._rate.per_minute())


class _Log:
    def __init__(self, total: int, *, silent: bool) -> None:
        self._rate = _Rate(total)
        self._silent = silent
        self._next = time.monotonic() + LOG_EVERY_S

    def advance(self) -> None:
        """One vote more."""
        self._rate.done += 1
        now = time.monotonic()
        if not self._silent and (now >= self._next or self._rate.done == self._rate.total):
            self._next = now + LOG_EVERY_S
            rate = round(self._rate.per_minute(), 1)
            logger.info("voting", votes=self._rate.done, of=self._rate.total, votes_per_minute=rate)
