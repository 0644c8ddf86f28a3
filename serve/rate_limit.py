"""How often one voter may vote: a bucket of tokens for each, which fills again at a steady rate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from serve.errors import Overloaded

REMEMBERED = 100_000
"""Voters whose buckets are kept; the one who was longest away is forgotten first, its bucket then long full again."""


class RateLimit:
    """Token buckets by key, on the event loop's thread.

    Args:
        per_minute: tokens that come back a minute; 0 limits nothing.
        burst: tokens that a full bucket holds.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> None:
        """Take a token.

        Raises:
            Overloaded: the bucket is empty; says when the next token comes.
        """
        if not self._per_s:
            return
        now = self._clock()
        tokens, at = self._buckets.pop(key, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - at) * self._per_s)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = (1 - tokens) / self._per_s
            raise Overloaded(
                f"You vote faster than people read; the next vote is taken in {wait:.0f} s.",
                retry_after_s=wait,
            )
