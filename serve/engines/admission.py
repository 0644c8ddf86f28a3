"""Who gets into the engine, and when: people never wait behind a trainer's rollouts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.engines.base import EngineOverloaded, Priority


class Admission:
    """Counts sequences by priority and keeps some of the engine's slots free of rollouts.

    vLLM orders its queue by priority, but a request that already runs keeps its slot: a batch full of rollouts would
    make a person wait for one of them to end. So rollouts get at most `slots - reserved` slots and wait here for them.

    Args:
        slots: sequences that the engine runs at once.
        reserved: of these, kept for people and probes.
        max_waiting: sequences that may wait beyond the slots before a request is refused.
    """

    def __init__(self, slots: int, reserved: int, max_waiting: int) -> None:
        self._slots = slots
        self._rollout_slots = max(1, slots - reserved)
        self._max_waiting = max_waiting
        self._counts = dict.fromkeys(Priority, 0)
        self._rollouts_inside = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return sum(self._counts.values())

    @property
    def held_back(self) -> int:
        """Sequences of rollouts that wait here, not yet in the engine."""
        return self._counts[Priority.ROLLOUT] - self._rollouts_inside

    @asynccontextmanager
    async def enter(self, priority: Priority, sequences: int) -> AsyncIterator[None]:
        """Let a request of so many sequences in; rollouts wait for their slots here.

        Raises:
            EngineOverloaded: as many sequences of this priority or a better one wait as may.
        """
        ahead = sum(count for each, count in self._counts.items() if each <= priority)
        if ahead and ahead + sequences > self._slots + self._max_waiting:
            raise EngineOverloaded(f"the engine is full: {ahead} answers are being written or wait; try again shortly")
        self._counts[priority] += sequences
        try:
            if priority is not Priority.ROLLOUT:
                yield
            else:
                async with self._rollout_slot(sequences):
                    yield
        finally:
            self._counts[priority] -= sequences

    @asynccontextmanager
    async def _rollout_slot(self, sequences: int) -> AsyncIterator[None]:
        if self._queue or not self._fits(sequences):
            await self._wait(sequences)
        else:
            self._rollouts_inside += sequences
        try:
            yield
        finally:
            self._leave(sequences)

    def _fits(self, sequences: int) -> bool:
        # A request wider than all rollout slots goes in alone rather than never.
        return self._rollouts_inside == 0 or self._rollouts_inside + sequences <= self._rollout_slots

    async def _wait(self, sequences: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (sequences, turn)
        self._queue.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(sequences)
            else:
                if entry in self._queue:
                    self._queue.remove(entry)
                self._wake()
            raise

    def _leave(self, sequences: int) -> None:
        self._rollouts_inside -= sequences
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            sequences, turn = self._queue.popleft()
            if not turn.done():
                self._rollouts_inside += sequences
                turn.set_result(None)
