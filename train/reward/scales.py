"""How much each family of features may say: chosen by the votes themselves, through the marginal likelihood.

A family's scale is the prior variance of its share of a score difference. Starting even, each is moved by MacKay's
fixed point (the ratio of what the fit uses to what the data determines), a few damped steps: enough to switch
useless families nearly off, too few to chase noise. Measured against fixed mixes and against one scale a column,
on nine hidden utilities: docs/log.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.reward import probe
from train.reward.probe import Array, Fit, Outcomes

TOTAL_VARIANCE = 4.0
"""Prior variance of a typical score difference (logits squared) at the start: people mostly know what they prefer."""
STATE_SHARE = 0.6
"""Share of it that the hidden states begin with, where there are others: what is said matters more often than shape."""
STEPS = 8
DAMPING = 0.5
PULL = 0.5
"""Weight of the hyperprior that pulls scales towards 0, in nats a unit of variance."""
SMALLEST, LARGEST = 1e-5, 30.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """A fit with the scales that it was made with.

    Attributes:
        fit: the probe's.
        variance: of each family.
        nu: Davidson's tie weight.
    """

    fit: Fit
    variance: dict[str, float]
    nu: float


def fit_with_scales(differences: Mapping[str, Array], outcomes: Outcomes) -> Scaled:
    """Fit the probe and its families' scales.

    Args:
        differences: per family, feature differences (n, k), scaled so that their mean squared row norm is 1.
        outcomes: the votes.
    """
    kernels = {name: rows @ rows.T for name, rows in differences.items()}
    variance = starting_variance(list(kernels))
    nu = probe.tie_weight(np.zeros(len(outcomes.tied)), outcomes)
    fitted = probe.fit(_mixed(kernels, variance), outcomes, nu)
    for _ in range(STEPS):
        variance = _moved(kernels, variance, fitted, outcomes, nu)
        fitted = probe.fit(_mixed(kernels, variance), outcomes, nu)
        nu = probe.tie_weight(fitted.scores, outcomes)
    return Scaled(probe.fit(_mixed(kernels, variance), outcomes, nu), variance, nu)


def starting_variance(names: Sequence[str]) -> dict[str, float]:
    """Prior variance of each family before the votes have spoken; adds up to `TOTAL_VARIANCE`."""
    states = [name for name in names if name.startswith("state:")]
    others = [name for name in names if not name.startswith("state:")]
    share = (STATE_SHARE if others else 1.0) if states else 0.0
    return {name: TOTAL_VARIANCE * share / len(states) for name in states} | {
        name: TOTAL_VARIANCE * (1 - share) / len(others) for name in others
    }


def _mixed(kernels: Mapping[str, Array], variance: Mapping[str, float]) -> Array:
    return np.asarray(sum(variance[name] * kernel for name, kernel in kernels.items()))


def _moved(
    kernels: Mapping[str, Array], variance: Mapping[str, float], fitted: Fit, outcomes: Outcomes, nu: float
) -> dict[str, float]:
    noise = np.diag(1 / np.maximum(probe.curvature(fitted.scores, outcomes, nu), 1e-9))
    spread = np.linalg.inv(_mixed(kernels, variance) + noise)
    moved = {}
    for name, kernel in kernels.items():
        used = float(fitted.dual @ kernel @ fitted.dual)
        determined = float((spread * kernel).sum()) + 2 * PULL
        step = (used / determined) ** DAMPING
        moved[name] = float(np.clip(variance[name] * step, SMALLEST, LARGEST))
    return moved
