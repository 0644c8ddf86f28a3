"""How much each family of features may say, and which may speak at all: chosen by the votes, through their evidence.

A family's scale is the prior variance of its share of a score difference. Starting even, each is moved by MacKay's
fixed point (the ratio of what the fit uses to what the data determines), a few damped steps: enough to switch
useless families nearly off, too few to chase noise. Measured against fixed mixes and against one scale a column,
on nine hidden utilities: docs/log.md. A few structures (sets of families that may speak together) are fitted so, and
averaged by their evidence: with tens of votes one that holds everything fits chance with what it doesn't need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.reward import probe
from train.reward.probe import Array, Fit, Outcomes, Rows

TOTAL_VARIANCE = 4.0
"""Prior variance of a typical score difference (logits squared) at the start: people mostly know what they prefer."""
STATE_SHARE = 0.6
"""Share of it that the hidden states begin with, where there are others: what is said matters more often than shape."""
STEPS = 8
DAMPING = 0.5
PULL = 0.5
"""Weight of the hyperprior that pulls scales towards 0, in nats a unit of variance."""
SMALLEST, LARGEST = 1e-5, 30.0
EVIDENCE_TEMPERATURE = 2.0
"""Nats of evidence are divided by this before structures are weighed: scales chosen by evidence flatter it."""
SMALLEST_SHARE = 0.02
"""Structures that would count less are left out."""
SCALE_ROWS = 512
"""Scales and shares are chosen on at most so many comparisons (the cost of a fit grows with the cube)."""


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


@dataclass(frozen=True, slots=True)
class Averaged:
    """Fits of several structures, averaged.

    Attributes:
        parts: share, and the fit, of each structure that counts; the shares add up to 1.
        nu: Davidson's tie weight of the average.
    """

    parts: tuple[tuple[float, Scaled], ...]
    nu: float

    def variance(self) -> dict[str, float]:
        """Of each family, averaged."""
        total: dict[str, float] = {}
        for share, scaled in self.parts:
            for name, value in scaled.variance.items():
                total[name] = total.get(name, 0.0) + share * value
        return total


def average(differences: Mapping[str, Array], outcomes: Outcomes, structures: Sequence[tuple[str, ...]]) -> Averaged:
    """Fit each structure with scales of its own, and weigh them by their evidence.

    Args:
        differences: per family, feature differences (n, k), scaled so that their mean squared row norm is 1.
        outcomes: the votes.
        structures: names of the families that each may use; those without any known family are passed over.
    """
    kernels = {name: rows @ rows.T for name, rows in differences.items()}
    some = _some(len(outcomes.tied))
    all_of_them = len(some) == len(outcomes.tied)
    few = kernels if all_of_them else {name: kernel[np.ix_(some, some)] for name, kernel in kernels.items()}
    tried = []
    for names in structures:
        known = [name for name in names if name in kernels]
        if known:
            tried.append(fit_with_scales({name: few[name] for name in known}, outcomes[some]))
    shares = evidence_shares([scaled.fit.evidence for scaled in tried])
    kept = [(share, scaled) for share, scaled in zip(shares, tried, strict=True) if share > 0]
    if all_of_them:
        return Averaged(tuple(kept), probe.tie_weight(_scores(kept), outcomes))
    return _settled(kernels, outcomes, kept)


def refit(differences: Mapping[str, Array], outcomes: Outcomes, averaged: Averaged) -> Averaged:
    """The same structures, shares and scales on other votes (or other weights of them)."""
    kernels = {name: rows @ rows.T for name, rows in differences.items()}
    return _settled(kernels, outcomes, averaged.parts)


def evidence_shares(evidence: Sequence[float]) -> list[float]:
    """Shares by tempered evidence, those under `SMALLEST_SHARE` 0, adding up to 1."""
    nats = np.asarray(evidence)
    weight = np.exp((nats - nats.max()) / EVIDENCE_TEMPERATURE)
    weight = np.where(weight / weight.sum() >= SMALLEST_SHARE, weight, 0.0)
    return [float(share) for share in weight / weight.sum()]


def fit_with_scales(kernels: Mapping[str, Array], outcomes: Outcomes) -> Scaled:
    """Fit the probe and its families' scales.

    Args:
        kernels: per family, `D D'` of feature differences D (n, k) whose mean squared row norm is 1.
        outcomes: the votes.
    """
    variance = starting_variance(list(kernels))
    nu = probe.tie_weight(np.zeros(len(outcomes.tied)), outcomes)
    fitted = probe.fit(mixed(kernels, variance), outcomes, nu)
    for _ in range(STEPS):
        variance = _moved(kernels, variance, fitted, outcomes, nu)
        fitted = probe.fit(mixed(kernels, variance), outcomes, nu, start=fitted.dual)
        nu = probe.tie_weight(fitted.scores, outcomes)
    return Scaled(probe.fit(mixed(kernels, variance), outcomes, nu, start=fitted.dual), variance, nu)


def _settled(kernels: Mapping[str, Array], outcomes: Outcomes, parts: Sequence[tuple[float, Scaled]]) -> Averaged:
    """The parts with their scales as they are, fitted to these outcomes."""
    fallback = probe.tie_weight(np.zeros(len(outcomes.tied)), outcomes)
    fits = []
    for share, scaled in parts:
        known = {name: value for name, value in scaled.variance.items() if name in kernels}
        nu = scaled.nu or fallback  # the votes that it was chosen on may have held no tie
        fits.append((share, Scaled(probe.fit(mixed(kernels, known), outcomes, nu), known, nu)))
    return Averaged(tuple(fits), probe.tie_weight(_scores(fits), outcomes))


def _scores(parts: Sequence[tuple[float, Scaled]]) -> Array:
    return np.asarray(sum(share * scaled.fit.scores for share, scaled in parts))


def _some(count: int) -> Rows:
    return np.unique(np.linspace(0, count - 1, min(count, SCALE_ROWS)).astype(np.int64))


def starting_variance(names: Sequence[str]) -> dict[str, float]:
    """Prior variance of each family before the votes have spoken; adds up to `TOTAL_VARIANCE`."""
    states = [name for name in names if name.startswith("state:")]
    others = [name for name in names if not name.startswith("state:")]
    share = (STATE_SHARE if others else 1.0) if states else 0.0
    return {name: TOTAL_VARIANCE * share / len(states) for name in states} | {
        name: TOTAL_VARIANCE * (1 - share) / len(others) for name in others
    }


def mixed(kernels: Mapping[str, Array], variance: Mapping[str, float]) -> Array:
    """Prior covariance of the score differences, (n, n), under the families' variances."""
    return np.asarray(sum(variance[name] * kernels[name] for name in variance))


def _moved(
    kernels: Mapping[str, Array], variance: Mapping[str, float], fitted: Fit, outcomes: Outcomes, nu: float
) -> dict[str, float]:
    noise = np.diag(1 / np.maximum(probe.curvature(fitted.scores, outcomes, nu), 1e-9))
    spread = np.linalg.inv(mixed(kernels, variance) + noise)
    moved = {}
    for name, kernel in kernels.items():
        used = float(fitted.dual @ kernel @ fitted.dual)
        determined = float((spread * kernel).sum()) + 2 * PULL
        step = (used / determined) ** DAMPING
        moved[name] = float(np.clip(variance[name] * step, SMALLEST, LARGEST))
    return moved
