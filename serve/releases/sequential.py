"""An anytime-valid test of a mean: look after every observation, as often as you like, and stop when you like.

A gambler bets on observations in [0, 1] that he claims to have a mean above `null`. Betting the share c of his capital
at fair odds multiplies it by

    (1 - c) + c * y / null

with each observation y. If the mean is at most `null`, each factor has an expectation of at most 1, whatever came
before; so the capital is a test supermartingale, and by Ville's inequality the probability that it *ever* reaches
1/alpha is at most alpha. Nobody knows the best share, so the capital is spread evenly over eight of them; their sum is
a supermartingale too. The nulls that are refuted, in both directions, bound a confidence sequence.

An observation may weigh less than 1: the bet on it is that share of the full one, so its factor still has an
expectation of at most 1, provided that the weight was known before the observation and doesn't depend on it.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024), sections 3
and 4 (capital process, grids of bets); Ville (1939); Robbins (1970) for the mixture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

BETS = tuple(0.05 * (0.9 / 0.05) ** (i / 7) for i in range(8))
"""Shares of the capital, 0.05 to 0.9 in equal ratios. Kelly's share against a coin is twice the win rate minus 1."""
_BISECTIONS = 40
Value = float | tuple[float, float]
"""An observation in [0, 1], or one with its weight in (0, 1]; alone it weighs 1."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence sequence's bounds now; each of them holds for all times with probability 1 - alpha.

    Attributes:
        mean: of the observations by their weights; None without any.
    """

    mean: float | None
    lower: float
    upper: float


class Evidence:
    """Capital against the claim that a mean is at most `null`, observation by observation.

    Args:
        null: strictly between 0 and 1.
    """

    def __init__(self, null: float) -> None:
        if not 0.0 < null < 1.0:
            raise ValueError(f"the null mean must lie between 0 and 1, not at {null}")
        self.null = null
        self.observations = 0
        self.total = 0.0
        self._logs = [0.0] * len(BETS)

    def add(self, value: float, times: int = 1, weight: float = 1.0) -> None:
        """Take in an observation in [0, 1], so many times, each with this weight in [0, 1]."""
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"an observation lies in [0, 1], not at {value}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"an observation weighs between 0 and 1, not {weight}")
        gain = weight * (value / self.null - 1.0)
        for index, bet in enumerate(BETS):
            self._logs[index] += times * math.log(1.0 + bet * gain)
        self.observations += times
        self.total += times * value

    @property
    def mean(self) -> float | None:
        """Mean of the observations; None without any."""
        return self.total / self.observations if self.observations else None

    @property
    def log_capital(self) -> float:
        """Natural logarithm of the capital, which began at 1."""
        return _log_mean_exp(self._logs)

    def refutes(self, alpha: float) -> bool:
        """Whether the capital refutes the claim now, at an error probability of alpha over all times together."""
        return self.log_capital >= -math.log(alpha)


def log_capital(counts: Mapping[Value, int], null: float) -> float:
    """Log capital against "the mean is at most null" after these observations; their order doesn't matter.

    Args:
        counts: how often each value was observed.
    """
    evidence = Evidence(null)
    for observed, times in counts.items():
        value, weight = split(observed)
        evidence.add(value, times, weight)
    return evidence.log_capital


def split(observed: Value) -> tuple[float, float]:
    """Value and weight of an observation."""
    return observed if isinstance(observed, tuple) else (observed, 1.0)


def total_weight(counts: Mapping[Value, int]) -> float:
    """Sum of the observations' weights."""
    return sum(split(observed)[1] * times for observed, times in counts.items())


def mirrored(counts: Mapping[Value, int]) -> Counter[Value]:
    """The same observations from the other side: 1 less each value."""
    found: Counter[Value] = Counter()
    for observed, times in counts.items():
        value, weight = split(observed)
        found[1.0 - value if weight == 1.0 else (1.0 - value, weight)] += times
    return found


def interval(counts: Mapping[Value, int], alpha: float) -> Interval:
    """Mean and confidence sequence after these observations.

    Args:
        counts: how often each value was observed.
        alpha: error probability of each bound, over all times together.
    """
    whole = total_weight(counts)
    weighed = sum(math.prod(split(observed)) * times for observed, times in counts.items())
    return Interval(
        mean=weighed / whole if whole else None,
        lower=_lower(counts, alpha),
        upper=1.0 - _lower(mirrored(counts), alpha),
    )


def _lower(counts: Mapping[Value, int], alpha: float) -> float:
    """The largest mean that is refuted from above; the capital falls as the null grows, so bisection finds it."""
    needed = -math.log(alpha)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if log_capital(counts, middle) >= needed:
            low = middle
        else:
            high = middle
    return low


def _log_mean_exp(logs: list[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
