"""Figures with their spread."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def interval(
    ours: Sequence[float],
    theirs: Sequence[float],
    figure: Callable[[Sequence[float], Sequence[float]], float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95% bootstrap interval of a figure of two samples, each drawn anew by itself."""
    rng = random.Random(seed)
    found = sorted(figure(rng.choices(ours, k=len(ours)), rng.choices(theirs, k=len(theirs))) for _ in range(draws))
    return found[int(0.025 * draws)], found[int(0.975 * draws) - 1]


def added_ms(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Difference of the medians, in milliseconds of two samples in seconds."""
    return 1e3 * (median(ours) - median(theirs))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ratio of the medians."""
    return median(ours) / median(theirs)


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
        "runs": len(values),
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 in milliseconds."""
    return {f"p{round(100 * s)}": round(1e3 * percentile(seconds, s), 2) for s in (0.5, 0.9, 0.99)}


def row(what: str, figure: float, aim: str, reached: bool, **more: Any) -> dict[str, Any]:
    """One line of the table."""
    return {"what": what, "figure": round(figure, 4), "aim": aim, "reached": reached, **more}
