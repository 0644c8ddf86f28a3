"""Strengths of contenders from votes with ties: Davidson's (1970) extension of Bradley and Terry, and its intervals.

With u_a = s(left) + bias + lengthen * x, where x is how much longer the left answer is, and u_b = s(right):

    P(left) ~ exp(u_a)    P(right) ~ exp(u_b)    P(neither) ~ exp(t + (u_a + u_b) / 2)

Davidson wrote s as log pi and t as log nu; the position's bias is Davidson and Beaver's (1977). The fit is the mode
under a normal prior on the strengths, which keeps the unbeaten finite and their mean 0; the objective is concave, and
Newton's method finds its only top. Pure functions on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feedback.voters.ballots import A, B

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

PRIOR_SD = 2.0
"""Standard deviation of the strengths' prior, nats: seven in eight strengths are within odds of 20 to 1."""
_OTHERS_SD = 3.0
_NEWTON_STEPS = 60
_CONVERGED = 1e-10
_HALVINGS = 30


@dataclass(frozen=True, slots=True, eq=False)
class Contests:
    """N votes among K contenders.

    Attributes:
        left, right: (N,) contender of each answer, 0 to K - 1, never the same one.
        choice: (N,) `A` (left), `B` (right) or `TIE`.
        longer: (N,) how much longer the left answer is, (l - r) / (l + r), from -1 to 1.
        weight: (N,) what the vote counts.
        voter: (N,) who voted, 0 to V - 1.
    """

    left: Ints
    right: Ints
    choice: NDArray[np.int8]
    longer: Floats
    weight: Floats
    voter: Ints
    contenders: int

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True, slots=True, eq=False)
class Strengths:
    """What was fitted.

    Attributes:
        strength: (K,) s, nats; adds up to 0.
        tie: t.
        bias: log-odds that the left answer has over the right one, all else equal.
        lengthen: log-odds of an answer that is all of the text over an empty one; 0 where length isn't controlled.
        draws: (R, K + 3) the same parameters for each bootstrap draw, in this order; R may be 0.
    """

    strength: Floats
    tie: float
    bias: float
    lengthen: float
    draws: Floats

    def intervals(self, level: float = 0.95) -> Floats:
        """(2, K + 3) percentile interval of each parameter: of the strengths, tie, bias, lengthen."""
        tail = 50 * (1 - level)
        found: Floats = np.percentile(self.draws, [tail, 100 - tail], axis=0)
        return found


def fit(contests: Contests, *, control_length: bool, draws: int = 0, seed: int = 0) -> Strengths:
    """Fit strengths, and with `draws` bootstrap their uncertainty by drawing whole voters with replacement.

    Each draw's parameters are one Newton step from the full fit, on the draw's own gradient and curvature (Davidson and
    MacKinnon, "Bootstrap testing in nonlinear models", 1999): the cost doesn't grow with the votes.
    """
    design = _design(contests, control_length)
    top = _mode(contests, design)
    resampled = _resample(contests, design, top, draws, np.random.default_rng(seed)) if draws else np.empty((0, 0))
    size = contests.contenders
    return Strengths(top[:size], float(top[size]), float(top[size + 1]), float(top[size + 2]), resampled)


def log_posterior(contests: Contests, parameters: Floats, *, control_length: bool) -> float:
    """What `fit` maximises, nats, at `parameters` (K + 3,)."""
    return _value(contests, _design(contests, control_length), parameters)


def _design(contests: Contests, control_length: bool) -> tuple[Floats, Floats]:
    """(N, K + 3) of the utility difference left less right, and of the tie's utility above their mean."""
    rows, size = np.arange(len(contests)), contests.contenders
    differs = np.zeros((len(contests), size + 3))
    differs[rows, contests.left] += 1.0
    differs[rows, contests.right] -= 1.0
    differs[:, size + 1] = 1.0
    differs[:, size + 2] = contests.longer if control_length else 0.0
    ties = np.zeros_like(differs)
    ties[:, size] = 1.0
    return differs, ties


def _probabilities(design: tuple[Floats, Floats], parameters: Floats) -> Floats:
    """(N, 3) of left, right, neither; utilities are taken from the middle of left and right."""
    half = design[0] @ parameters / 2
    logits = np.stack([half, -half, design[1] @ parameters], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    found: Floats = odds / odds.sum(axis=1, keepdims=True)
    return found


def _precision(contests: Contests) -> Floats:
    sds = np.r_[np.full(contests.contenders, PRIOR_SD), np.full(3, _OTHERS_SD)]
    found: Floats = 1 / sds**2
    return found


def _value(contests: Contests, design: tuple[Floats, Floats], parameters: Floats) -> float:
    chosen = _probabilities(design, parameters)[np.arange(len(contests)), contests.choice]
    return float(contests.weight @ np.log(chosen) - 0.5 * _precision(contests) @ parameters**2)


def _slopes(contests: Contests, design: tuple[Floats, Floats], parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """Per vote: (N,) slopes along the difference and the tie, (N, 3) entries of the curvature between these two."""
    p = _probabilities(design, parameters)
    lean = (p[:, A] - p[:, B]) / 2
    said = np.where(contests.choice == A, 0.5, np.where(contests.choice == B, -0.5, 0.0))
    neither = p[:, 2]
    bend = np.stack([(p[:, A] + p[:, B]) / 4 - lean**2, -lean * neither, neither * (1 - neither)], axis=1)
    return (
        contests.weight * (said - lean),
        contests.weight * ((contests.choice > B) - neither),
        contests.weight[:, None] * bend,
    )


def _mode(contests: Contests, design: tuple[Floats, Floats]) -> Floats:
    """Newton's method; a step that would go down is halved."""
    parameters = np.zeros(contests.contenders + 3)
    value = _value(contests, design, parameters)
    for _ in range(_NEWTON_STEPS):
        slope, tie_slope, bend = _slopes(contests, design, parameters)
        gradient = design[0].T @ slope + design[1].T @ tie_slope - _precision(contests) * parameters
        step = np.linalg.solve(_curvature(contests, design, bend), gradient)
        for _ in range(_HALVINGS):
            after = _value(contests, design, parameters + step)
            if after >= value:
                break
            step /= 2
        parameters, gain, value = parameters + step, after - value, after
        if gain < _CONVERGED * (1 + abs(value)):
            break
    return parameters


def _curvature(contests: Contests, design: tuple[Floats, Floats], bend: Floats) -> Floats:
    differs, ties = design
    cross = differs.T @ (bend[:, [1]] * ties)
    data = differs.T @ (bend[:, [0]] * differs) + cross + cross.T + ties.T @ (bend[:, [2]] * ties)
    found: Floats = data + np.diag(_precision(contests))
    return found


def _resample(
    contests: Contests, design: tuple[Floats, Floats], top: Floats, draws: int, rng: np.random.Generator
) -> Floats:
    """(draws, K + 3) one Newton step from the mode for each draw of voters."""
    voters, voter = np.unique(contests.voter, return_inverse=True)
    gradients, bends = _by_voter(contests, design, top, voter, len(voters))
    times = rng.multinomial(len(voters), np.full(len(voters), 1 / len(voters)), size=draws).astype(np.float64)
    precision = _precision(contests)
    slopes = times @ gradients - precision * top
    size = len(top)
    curvatures = (times @ bends.reshape(len(voters), -1)).reshape(draws, size, size) + np.diag(precision)
    found: Floats = top + np.linalg.solve(curvatures, slopes[:, :, None])[:, :, 0]
    size = contests.contenders
    found[:, :size] -= found[:, :size].mean(axis=1, keepdims=True)
    return found


def _by_voter(
    contests: Contests, design: tuple[Floats, Floats], top: Floats, voter: NDArray[np.int64], voters: int
) -> tuple[Floats, Floats]:
    """(V, P) gradient and (V, P, P) curvature of each voter's votes, without the prior."""
    slope, tie_slope, bend = _slopes(contests, design, top)
    differs, ties = design
    size = differs.shape[1]
    order = np.argsort(voter, kind="stable")
    starts = np.searchsorted(voter[order], np.arange(voters))
    gradients = np.add.reduceat((slope[:, None] * differs + tie_slope[:, None] * ties)[order], starts, axis=0)
    curvatures = np.empty((voters, size, size))
    for row in range(size):
        column = bend[:, [0]] * differs[:, [row]] * differs + bend[:, [2]] * ties[:, [row]] * ties
        column += bend[:, [1]] * (differs[:, [row]] * ties + ties[:, [row]] * differs)
        curvatures[:, row] = np.add.reduceat(column[order], starts, axis=0)
    return gradients, curvatures
