"""Figures that take the longer the more votes there are, for pages that ask every two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
QUICK_S = 0.2
"""Work that takes less is done each time."""
REST = 20.0
"""Slower work is done again after so many times its own duration: a twentieth of a core at most, whoever asks."""


class Kept(Generic[T]):
    """What `work` returned last, while it is fresh. For any thread: one works, the others take what there was.

    Args:
        work: may block.
        clock: seconds, monotonic.
    """

    def __init__(self, work: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._clock = clock
        self._lock = threading.Lock()
        self._found: tuple[T] | None = None
        self._until = 0.0

    def __call__(self) -> T:
        """The figures; who is the first waits for them."""
        if self._found is not None and (self._clock() < self._until or self._lock.locked()):
            return self._found[0]
        with self._lock:
            if self._found is None or self._clock() >= self._until:
                began = self._clock()
                self._found = (self._work(),)
                took = self._clock() - began
                self._until = self._clock() + (REST * took if took > QUICK_S else 0.0)
            return self._found[0]
