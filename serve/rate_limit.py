"""How often one voter may vote, or take a review: a bucket of tokens for each, which fills again at a steady rate."""

from __future__ import annotations

import math
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
        refusal: what who finds it empty is told; `{wait}` stands for the seconds until the next token.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        per_minute: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        refusal: str = "You vote faster than people read; the next vote is taken in {wait} s.",
    ) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._refusal = refusal
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
            raise Overloaded(self._refusal.format(wait=math.ceil(wait)), retry_after_s=wait)


class ReviewLimits:
    """How often prepared pairs are handed out: to one voter as often as they may vote, and to all together.

    A pair that a person asks for costs the engine's time, of which there is so much. A prepared one costs nothing but
    its place in the ledger, and who sends no name, or ever new ones, is a new voter each time.

    Args:
        per_minute, burst: of one voter.
        together: of all, a minute; 0 limits nothing.
    """

    def __init__(self, per_minute: float, burst: int, together: float) -> None:
        own = "You take pairs faster than people read; the next one is there in {wait} s."
        self._own = RateLimit(per_minute, burst, refusal=own)
        busy = "Very many prepared pairs are being asked for; try again in {wait} s (serve.ratings.reviews_per_minute)."
        self._together = RateLimit(together, max(1, round(together)), refusal=busy)

    def take(self, voter: str) -> None:
        """Allow one pair.

        Raises:
            Overloaded: too many were taken; says when the next one may be.
        """
        self._own.take(voter)
        self._together.take("")
