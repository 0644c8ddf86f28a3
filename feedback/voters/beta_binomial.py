"""Log-probabilities of sequences of wins and losses whose rate is drawn from a beta distribution, many at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class BetaBinomial:
    """C sequences of M kinds; what doesn't change from one set of rates to the next is worked out once.

    Args:
        wins, losses: (C,) how many of each.
        kind: (C,) which of M alphas belongs to a sequence.
        spread: alpha plus beta, the same for all.
    """

    def __init__(self, wins: Ints, losses: Ints, kind: Ints, kinds: int, spread: float) -> None:
        self._spread = spread
        self._wins, self._losses = _Rising(wins, kind, kinds), _Rising(losses, kind, kinds)
        together = _Rising(wins + losses, np.zeros(len(kind), dtype=np.int64), 1)
        self._together = together.logs(np.array([spread]))

    def log_probability(self, alphas: Floats) -> Floats:
        """(C,) log-probability of one sequence of so many, with rates from Beta(alpha, spread - alpha); alphas (M,)."""
        return self._wins.logs(alphas) + self._losses.logs(self._spread - alphas) - self._together


class _Rising:
    """Rising factorials start (start + 1) … (start + n - 1) for C numbers n of M kinds, each with its own start.

    The kinds' tables, each as long as its own largest n, lie behind each other in one array.
    """

    def __init__(self, counts: Any, kind: Ints, kinds: int) -> None:
        counts = np.asarray(counts, dtype=np.int64)
        most = np.zeros(kinds, dtype=np.int64)
        np.maximum.at(most, kind, counts)
        self._begins = np.cumsum(most + 1) - (most + 1)
        self._kind = np.repeat(np.arange(kinds), most + 1)
        self._step = np.arange(len(self._kind)) - self._begins[self._kind] - 1.0
        self._place = self._begins[kind] + counts

    def logs(self, starts: Floats) -> Floats:
        """(C,) logarithms, with starts (M,)."""
        terms = starts[self._kind] + self._step
        terms[self._begins] = 1.0
        sums = np.cumsum(np.log(terms))
        found: Floats = sums[self._place] - sums[self._begins[self._kind[self._place]]]
        return found
