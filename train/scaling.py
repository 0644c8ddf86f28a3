"""The scale of rewards, so that their size and the KL coefficient keep their proportion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RunningScale:
    """Mean and spread of all scores so far (Chan et al. 1979). Immutable: `updated` gives the next one.

    Attributes:
        count: scores seen.
        mean: of them.
        squares: sum of squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """Population standard deviation; 1 while nothing is known of it."""
        found = math.sqrt(self.squares / self.count) if self.count else 0.0
        return found if found > 1e-8 else 1.0

    def updated(self, scores: Tensor) -> RunningScale:
        """After the scores (B,) of one more iteration."""
        values = scores.double()
        count, mean = len(values), float(values.mean())
        squares = float((values - mean).square().sum())
        total, gap = self.count + count, mean - self.mean
        return RunningScale(
            total, self.mean + gap * count / total, self.squares + squares + gap**2 * self.count * count / total
        )
