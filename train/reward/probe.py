"""A ties-aware Bradley-Terry fit in kernel form: exact, convex, and a few milliseconds for hundreds of votes.

The score is linear in each block's features with a Gaussian prior; the prior's scales (how much each block may say)
are chosen by the caller. With `K` the sum of the blocks' kernels over feature differences and `f = K a`, the fit is

    minimise  sum_i weight_i * loss_i(f_i - margin_i) + a'Ka / 2

where `loss` is Davidson's (losses.py) for wins and ties. Newton's method as in Rasmussen and Williams, Gaussian
Processes for Machine Learning, algorithm 3.1; the Laplace evidence is their equation 3.32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What voters said, one entry a comparison.

    Attributes:
        tied: True where the voter tied; else the first answer won, (n,).
        weight: what the vote counts, (n,).
        margin: how much better the winner must be, (n,); 0 for ties.
    """

    tied: NDArray[np.bool_]
    weight: Array
    margin: Array

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Outcomes:
        """The chosen comparisons."""
        return Outcomes(self.tied[rows], self.weight[rows], self.margin[rows])


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted probe.

    Attributes:
        dual: `a`, (n,): weights of a block are `scale^2 * differences' a`.
        scores: fitted score differences `K a`, (n,).
        evidence: log marginal likelihood (Laplace), nats.
    """

    dual: Array
    scores: Array
    evidence: float


def log_likelihood(difference: Array, outcomes: Outcomes, nu: float) -> Array:
    """Weighted log-likelihood of each comparison under Davidson's model, (n,)."""
    d = difference - outcomes.margin
    total = _log_total(d, nu)
    tie = np.log(nu) - total if nu > 0 else np.full_like(d, -np.inf)
    chosen: Array = np.where(outcomes.tied, tie, d / 2 - total)
    return outcomes.weight * chosen


def fit(kernel: Array, outcomes: Outcomes, nu: float, *, start: Array | None = None, steps: int = 50) -> Fit:
    """The maximum a posteriori fit.

    Args:
        kernel: prior covariance of the score differences, (n, n).
        outcomes: the votes.
        nu: Davidson's tie weight; above 0 if there are ties.
        start: the dual to begin from, (n,); the optimum does not depend on it.
        steps: of Newton's method, at most.
    """
    n = len(kernel)
    dual = np.zeros(n) if start is None else start
    f = kernel @ dual
    best = -np.inf if start is None else _objective(kernel, dual, outcomes, nu)
    for _ in range(steps):
        gradient, bend = _slopes(f, outcomes, nu)
        root = np.sqrt(bend)
        factor = np.linalg.cholesky(np.eye(n) + root[:, None] * kernel * root)
        b = bend * f + gradient
        target = b - root * _solve(factor, root * (kernel @ b))
        step, objective = 1.0, -np.inf
        trial = dual
        while step > 1e-4:  # concave: the full step nearly always rises
            trial = dual + step * (target - dual)
            objective = _objective(kernel, trial, outcomes, nu)
            if objective >= best:
                break
            step /= 2
        if not objective > best + 1e-9:
            break
        dual, f, best = trial, kernel @ trial, objective
    root = np.sqrt(curvature(f, outcomes, nu))
    factor = np.linalg.cholesky(np.eye(n) + root[:, None] * kernel * root)
    return Fit(dual, f, float(best - np.log(np.diag(factor)).sum()))


def tie_weight(scores: Array, outcomes: Outcomes) -> float:
    """The `nu` that makes as many ties likely as there were, given fitted score differences (bisection)."""
    share = float((outcomes.weight * outcomes.tied).sum() / outcomes.weight.sum())
    if share == 0.0:
        return 0.0
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        nu = float(np.exp(middle))
        expected = float((outcomes.weight * np.exp(middle - _log_total(scores, nu))).sum() / outcomes.weight.sum())
        low, high = (low, middle) if expected > share else (middle, high)
    return float(np.exp((low + high) / 2))


def curvature(scores: Array, outcomes: Outcomes, nu: float) -> Array:
    """Minus the second derivative of each vote's log-likelihood: how much it tells, (n,)."""
    return _slopes(scores, outcomes, nu)[1]


def _objective(kernel: Array, dual: Array, outcomes: Outcomes, nu: float) -> float:
    f = kernel @ dual
    return float(log_likelihood(f, outcomes, nu).sum() - dual @ f / 2)


def _slopes(f: Array, outcomes: Outcomes, nu: float) -> tuple[Array, Array]:
    """Gradient of the log-likelihood and minus its second derivative, each (n,)."""
    d = f - outcomes.margin
    total = _log_total(d, nu)
    win, loss = np.exp(d / 2 - total), np.exp(-d / 2 - total)
    lean = (win - loss) / 2
    gradient = np.where(outcomes.tied, 0.0, 0.5) - lean
    bend = np.maximum((win + loss) / 4 - lean**2, 1e-12)
    return outcomes.weight * gradient, outcomes.weight * bend


def _log_total(d: Array, nu: float) -> Array:
    wins = np.logaddexp(d / 2, -d / 2)
    return np.logaddexp(wins, np.log(nu)) if nu > 0 else wins


def _solve(factor: Array, right: Array) -> Array:
    from scipy.linalg import cho_solve

    solved: Array = np.asarray(cho_solve((factor, True), right), dtype=np.float64)
    return solved
