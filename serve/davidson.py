"""Strengths of contenders from votes with ties: Davidson's (1970) extension of Bradley and Terry, and its intervals.

With u_a = s(left) + bias + lengthen * x, where x is how much longer the left answer is, and u_b = s(right):

    P(left) ~ exp(u_a)    P(right) ~ exp(u_b)    P(neither) ~ exp(t + (u_a + u_b) / 2)

Davidson wrote s as log pi and t as log nu; the position's bias is Davidson and Beaver's (1977). The fit is the mode
under a normal prior on the strengths, which keeps the unbeaten finite and their mean 0; the objective is concave, and
Newton's method finds its only top. Pure functions on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feedback.voters.ballots import A, B
from serve.davidson_sums import Sums, in_order

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

PRIOR_SD = 2.0
"""Standard deviation of the strengths' prior, nats: seven in eight strengths are within odds of 20 to 1."""
_OTHERS_SD = 3.0
_NEWTON_STEPS = 60
_CONVERGED = 1e-10
_HALVINGS = 30
_AT_ONCE = 1_000_000
"""Numbers of a table of draws by votes, or by squares of parameters, that are held at once."""


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

    def in_order(self) -> Contests:
        """The same, votes of the same two together, as `sums` wants them."""
        order = in_order(self.left, self.right, self.contenders)
        columns = {
            name: getattr(self, name)[order] for name in ("left", "right", "choice", "longer", "weight", "voter")
        }
        return replace(self, **columns)

    def sums(self, control_length: bool) -> Sums:
        """What adds them up, with length or without."""
        longer = self.longer if control_length else np.zeros(len(self))
        return Sums(self.left, self.right, longer, self.contenders)


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
    MacKinnon, "Bootstrap testing in nonlinear models", 1999). Votes of the same two add up (`Sums`): time and memory go
    with the votes and with the contenders, not with the one times the other.
    """
    told = contests.in_order()
    sums = told.sums(control_length)
    top = _mode(told, sums)
    resampled = _resample(told, sums, top, draws, np.random.default_rng(seed)) if draws else np.empty((0, 0))
    size = contests.contenders
    return Strengths(top[:size], float(top[size]), float(top[size + 1]), float(top[size + 2]), resampled)


def log_posterior(contests: Contests, parameters: Floats, *, control_length: bool) -> float:
    """What `fit` maximises, nats, at `parameters` (K + 3,)."""
    return _value(contests, contests.sums(control_length), parameters)


def _probabilities(sums: Sums, parameters: Floats) -> Floats:
    """(N, 3) of left, right, neither; utilities are taken from the middle of left and right."""
    half = sums.differences(parameters) / 2
    logits = np.stack([half, -half, np.full_like(half, parameters[sums.contenders])], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    found: Floats = odds / odds.sum(axis=1, keepdims=True)
    return found


def _precision(contests: Contests) -> Floats:
    sds = np.r_[np.full(contests.contenders, PRIOR_SD), np.full(3, _OTHERS_SD)]
    found: Floats = 1 / sds**2
    return found


def _value(contests: Contests, sums: Sums, parameters: Floats) -> float:
    chosen = _probabilities(sums, parameters)[np.arange(len(contests)), contests.choice]
    return float(contests.weight @ np.log(chosen) - 0.5 * _precision(contests) @ parameters**2)


def _slopes(
    contests: Contests, sums: Sums, parameters: Floats
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats, Floats]]:
    """Per vote (N,): slopes along the difference and the tie; the three entries of the curvature between these two."""
    p, weight = _probabilities(sums, parameters), contests.weight
    lean = (p[:, A] - p[:, B]) / 2
    said = np.where(contests.choice == A, 0.5, np.where(contests.choice == B, -0.5, 0.0))
    neither = p[:, 2]
    slopes = weight * (said - lean), weight * ((contests.choice > B) - neither)
    bends = (p[:, A] + p[:, B]) / 4 - lean**2, -lean * neither, neither * (1 - neither)
    return slopes, (weight * bends[0], weight * bends[1], weight * bends[2])


def _mode(contests: Contests, sums: Sums) -> Floats:
    """Newton's method; a step that would go down is halved."""
    precision, once = _precision(contests), np.ones((1, len(contests)))
    parameters = np.zeros(contests.contenders + 3)
    value = _value(contests, sums, parameters)
    for _ in range(_NEWTON_STEPS):
        slopes, bends = _slopes(contests, sums, parameters)
        gradient = sums.gradients(sums.slopes(*slopes, once))[0] - precision * parameters
        step = np.linalg.solve(sums.curvatures(sums.bends(*bends, once))[0] + np.diag(precision), gradient)
        for _ in range(_HALVINGS):
            after = _value(contests, sums, parameters + step)
            if after >= value:
                break
            step /= 2
        parameters, gain, value = parameters + step, after - value, after
        if gain < _CONVERGED * (1 + abs(value)):
            break
    return parameters


def _resample(contests: Contests, sums: Sums, top: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, K + 3) one Newton step from the mode for each draw of voters."""
    voters, voter = np.unique(contests.voter, return_inverse=True)
    chances = np.full(len(voters), 1 / len(voters))
    slopes, bends = _slopes(contests, sums, top)
    precision, size = _precision(contests), contests.contenders
    some = max(1, _AT_ONCE // max(len(contests), len(top) ** 2))
    found = np.empty((draws, len(top)))
    for start in range(0, draws, some):
        times = rng.multinomial(len(voters), chances, size=min(some, draws - start))
        drawn = times.astype(np.float64)[:, voter]
        gradients = sums.gradients(sums.slopes(*slopes, drawn)) - precision * top
        curvatures = sums.curvatures(sums.bends(*bends, drawn)) + np.diag(precision)
        found[start : start + some] = top + np.linalg.solve(curvatures, gradients[:, :, None])[:, :, 0]
    found[:, :size] -= found[:, :size].mean(axis=1, keepdims=True)
    return found
