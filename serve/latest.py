"""Figures that may take seconds: one thread works them out, and whoever asks meanwhile holds none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import anyio.to_thread

T = TypeVar("T")
PATIENCE_S = 0.5
"""Seconds for which who asks waits for newer figures; then they take those that there are."""


class Latest(Generic[T]):
    """What `work` returned last. For the event loop's thread.

    Args:
        work: may block; quick where nothing is new. It is called by one thread at a time, as long as somebody asks.
    """

    def __init__(self, work: Callable[[], T], patience_s: float = PATIENCE_S) -> None:
        self._work = work
        self._patience_s = patience_s
        self._found: tuple[T] | None = None
        self._running: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """The figures; they are waited for only while there are none at all.

        Raises:
            Exception: what `work` raised.
        """
        await self._look(None if self._found is None else self._patience_s)
        assert self._found is not None, "work has returned"
        return self._found[0]

    async def if_any(self) -> T | None:
        """The figures, or None where there are none yet: for who mustn't wait for long.

        Raises:
            Exception: what `work` raised.
        """
        await self._look(self._patience_s)
        return None if self._found is None else self._found[0]

    async def _look(self, timeout_s: float | None) -> None:
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="figures")
            self._running.add_done_callback(_heard)
        running = self._running
        done, _ = await asyncio.wait({running}, timeout=timeout_s)
        if done:
            await running

    async def _run(self) -> T:
        try:
            found: T = await anyio.to_thread.run_sync(partial(self._work), abandon_on_cancel=True)
        finally:
            self._running = None
        self._found = (found,)
        return found


def _heard(task: asyncio.Task[T]) -> None:
    """Whoever waits hears of a failure; where nobody does any more, the next who asks tries again."""
    if not task.cancelled():
        task.exception()
