"""Who speaks: the adapter in office, and how many requests each adapter is still answering."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Office:
    """Held by the event loop's thread, so that a switch is one assignment and no request sees half of it.

    A request borrows its adapter for as long as it runs; an adapter is unloaded only after its last borrower left.
    """

    def __init__(self) -> None:
        self._holder: str | None = None
        self._canaries: tuple[str, ...] = ()
        self._predecessors: tuple[str | None, ...] = ()
        self._asked: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._borrowed: Counter[str] = Counter()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def holder(self) -> str | None:
        """The adapter in office; None is the base."""
        return self._holder

    @property
    def canaries(self) -> tuple[str, ...]:
        """Adapters that get a share of the pairs against the office-holder."""
        return self._canaries

    @property
    def predecessors(self) -> tuple[str | None, ...]:
        """Whom the office-holder meets in a share of the pairs, as long as it is watched (None: the base)."""
        return self._predecessors

    def switch(self, adapter: str | None) -> None:
        """From now on requests are answered by this adapter; those that run end on theirs."""
        self._holder = adapter

    def set_canaries(self, names: tuple[str, ...]) -> None:
        """From now on these may be drawn as candidates."""
        self._canaries = names

    def set_predecessors(self, names: tuple[str | None, ...]) -> None:
        """From now on these may be drawn against the office-holder."""
        self._predecessors = names

    def withdraw(self, name: str) -> None:
        """From now on nobody meets this adapter in a pair; those who do already end on it."""
        self._canaries = tuple(canary for canary in self._canaries if canary != name)
        self._predecessors = tuple(each for each in self._predecessors if each != name)

    def note_answer(self, adapter: str | None, *, failed: bool) -> None:
        """An answer of a pair has ended; `failed`: by a fault, not because its reader left."""
        if adapter is not None:
            self._asked[adapter] += 1
            self._failed[adapter] += failed

    def failures(self, adapter: str) -> tuple[int, int]:
        """Answers of pairs that the adapter was asked for in this process, and how many of them failed."""
        return self._asked[adapter], self._failed[adapter]

    @contextmanager
    def borrow(self, *adapters: str | None) -> Iterator[None]:
        """Keep these adapters loaded until the block ends."""
        names = [name for name in adapters if name is not None]
        self._borrowed.update(names)
        try:
            yield
        finally:
            for name in names:
                self._give_back(name)

    def in_use(self, adapter: str) -> int:
        """Requests that are running on the adapter."""
        return self._borrowed[adapter]

    async def idle(self, adapter: str) -> None:
        """Return once nobody borrows the adapter."""
        while self._borrowed[adapter]:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(adapter, []).append(waiter)
            await waiter

    def _give_back(self, name: str) -> None:
        self._borrowed[name] -= 1
        if self._borrowed[name] > 0:
            return
        del self._borrowed[name]
        for waiter in self._waiters.pop(name, []):
            if not waiter.done():
                waiter.set_result(None)
