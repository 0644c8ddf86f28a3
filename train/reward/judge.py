"""Is this reward model fit to be trained against? Judged on votes that the judged fit never saw."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from train.errors import RewardRefused
from train.reward.probe import Array

LN2 = float(np.log(2))
COIN = 0.1
"""Share of coins that may pass for a reward model."""
COIN_Z = 1.2816
"""The same as a bound of the normal distribution, one-sided, where `by_chance` isn't known: for the `last` head, and
with hundreds of votes."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Predictions within one tenth: how sure, how often right, how many."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Held-out figures over decisive votes.

    Attributes:
        accuracy: share of votes whose winner scores higher.
        log_loss: nats a vote; a coin has ln 2.
        ece: expected calibration error over ten bins of confidence.
        length_correlation: Pearson's, of score and answer length, over voted answers.
        longer_preferred: share of votes for the longer answer, among those of unequal length.
        new_voters: accuracy with whole voters held out; NaN with fewer than four voters.
        votes: decisive votes judged.
        raw_log_loss, raw_ece: the same before the temperature.
        temperature: factor of the scores, learnt from held-out votes; 1 leaves them as they are.
        length_controlled: accuracy of what is left of the score difference when its linear dependence on the
            difference in length is taken out.
        disagreement: mean deviation of the ensemble's heads about a pair, over that of the scores; NaN without.
        drift: 1 - correlation with the last reward model's scores of the voted answers; NaN without one.
        reordered: share of voted pairs that the last reward model orders the other way.
        calibration: bins for the plot.
        slices: accuracy and count by slice.
        trusted_accuracy, trusted_votes: see `trusted`; what the test against a coin goes by without `by_chance`.
        by_chance: probability that coins would be fitted as well (`chance.by_chance`); NaN where it isn't known.
    """

    accuracy: float
    log_loss: float
    ece: float
    length_correlation: float
    longer_preferred: float
    new_voters: float
    votes: int
    raw_log_loss: float = float("nan")
    raw_ece: float = float("nan")
    temperature: float = 1.0
    length_controlled: float = float("nan")
    disagreement: float = float("nan")
    drift: float = float("nan")
    reordered: float = float("nan")
    calibration: tuple[CalibrationBin, ...] = ()
    slices: dict[str, tuple[float, int]] = field(default_factory=dict)
    trusted_accuracy: float = float("nan")
    trusted_votes: float = float("nan")
    by_chance: float = float("nan")

    def metrics(self) -> dict[str, float]:
        """The figures that have a value, by name."""
        found = {
            "reward_accuracy": self.accuracy,
            "reward_log_loss": self.log_loss,
            "reward_ece": self.ece,
            "reward_length_correlation": self.length_correlation,
            "reward_longer_preferred": self.longer_preferred,
            "reward_accuracy_new_voters": self.new_voters,
            "reward_votes": float(self.votes),
            "reward_log_loss_raw": self.raw_log_loss,
            "reward_ece_raw": self.raw_ece,
            "reward_temperature": self.temperature,
            "reward_accuracy_length_controlled": self.length_controlled,
            "reward_disagreement": self.disagreement,
            "reward_drift": self.drift,
            "reward_reordered": self.reordered,
            "reward_by_chance": self.by_chance,
        }
        return {name: value for name, value in found.items() if np.isfinite(value)}


def log_loss(difference: Array, weight: Array) -> float:
    """Mean `-ln sigmoid(difference)`, nats."""
    return float((np.logaddexp(0.0, -difference) * weight).sum() / weight.sum())


def temperature(difference: Array, weight: Array) -> float:
    """The factor in (0, 1] that makes held-out score differences best calibrated (least log-loss; convex).

    Few votes overstate a fit's certainty; one number learnt from held-out votes mends that (Guo et al. 2017).
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda t: log_loss(t * difference, weight), bounds=(1e-3, 1.0), method="bounded")
    return float(found.x) if log_loss(found.x * difference, weight) < log_loss(difference, weight) else 1.0


def accuracy(difference: Array) -> float:
    """Share above 0; an exact 0 counts half."""
    return float(np.mean((difference > 0) + 0.5 * (difference == 0))) if len(difference) else float("nan")


def trusted(difference: Array, weight: Array) -> tuple[float, float]:
    """The accuracy by the votes' weights, and how many votes of one weight are as much worth as these (Kish).

    Voters who are hardly trusted have hardly any weight in the fit; they must not decide alone whether it is used.
    """
    total = float(weight.sum())
    if not total > 0:
        return float("nan"), 0.0
    right = (difference > 0) + 0.5 * (difference == 0)
    return float(weight @ right) / total, total**2 / float(weight @ weight)


def calibration(difference: Array, bins: int = 10) -> tuple[tuple[CalibrationBin, ...], float]:
    """Bins of confidence from 0.5 to 1, and the expected calibration error (their mean gap, weighted by count)."""
    sure = 1 / (1 + np.exp(-np.abs(difference)))
    right = (difference > 0) + 0.5 * (difference == 0)
    place = np.minimum(((sure - 0.5) * 2 * bins).astype(int), bins - 1)
    found = [
        CalibrationBin(float(sure[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(bins)
        if (place == b).any()
    ]
    gap = sum(b.count * abs(b.confidence - b.accuracy) for b in found) / max(len(difference), 1)
    return tuple(found), float(gap)


def correlation(x: Array, y: Array) -> float:
    """Pearson's; 0 where either is constant."""
    if len(x) < 2 or np.std(x) < 1e-12 or np.std(y) < 1e-12:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def without_length(difference: Array, longer: Array) -> Array:
    """Score differences less what follows linearly from the differences in length (least squares through 0), (n,)."""
    square = float(longer @ longer)
    return difference - longer * (float(longer @ difference) / square) if square > 0 else difference


def drift(new: Array, old: Array, first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[float, float]:
    """How far a reward model moved from the last: 1 - correlation of scores, and the share of pairs reordered.

    Args:
        new, old: scores of all answers, (answers,).
        first, second: rows of the voted pairs, (n,).
    """
    turned = (new[first] - new[second]) * (old[first] - old[second]) < 0
    return 1 - correlation(new, old), float(turned.mean())


def longer_share(lengths_first: NDArray[np.int64], lengths_second: NDArray[np.int64]) -> tuple[float, int]:
    """Share of votes where the winner (first) was the longer, and how many were of unequal length."""
    unequal = lengths_first != lengths_second
    count = int(unequal.sum())
    return (float((lengths_first > lengths_second)[unequal].mean()) if count else 0.5), count


def refuse_unless_fit(judged: Judgement, max_length_correlation: float, unequal_votes: int) -> None:
    """Raise unless the model may be trained against.

    Raises:
        RewardRefused: no better than a coin, or a length meter that the votes don't ask for.
    """
    _refuse_a_coin(judged)
    lean = abs(judged.longer_preferred - 0.5)
    votes_ask_for_length = lean > 1 / max(unequal_votes, 1) ** 0.5  # two standard errors of a fair coin
    if abs(judged.length_correlation) > max_length_correlation and not votes_ask_for_length:
        raise RewardRefused(
            f"the reward model is a length meter (score against length {judged.length_correlation:+.2f}), the votes "
            f"don't ask for one (longer answer preferred in {judged.longer_preferred:.0%}): the incumbent stays",
            test="length",
        )


def _refuse_a_coin(judged: Judgement) -> None:
    weighed = np.isfinite(judged.trusted_accuracy)
    accuracy = judged.trusted_accuracy if weighed else judged.accuracy
    if np.isfinite(judged.by_chance):
        better = judged.by_chance <= COIN + 1e-9
        bound = f"so good a fit comes by chance in {judged.by_chance:.0%}, at most {COIN:.0%} is asked for"
    else:
        needed = 0.5 + COIN_Z * 0.5 / max(judged.trusted_votes if weighed else judged.votes, 1) ** 0.5
        better = accuracy > needed
        bound = f"above {needed:.2f} is needed"
    if not (judged.log_loss < LN2 and better):
        raise RewardRefused(
            f"the reward model predicts held-out votes no better than a coin (accuracy {accuracy:.2f} of "
            f"{judged.votes} votes, {bound}; log-loss {judged.log_loss:.3f}, a coin has {LN2:.3f}): "
            "the cycle ends here, the incumbent stays; more votes are needed",
            test="coin",
        )


def refuse_if_worse(new: Array, old: Array, weight: Array) -> None:
    """Raise when the last model predicts votes that neither has seen clearly better than the new one.

    Args:
        new: held-out score differences (logits) of the new model on votes cast since the last one, (n,).
        old: the last model's on the same votes, (n,).
        weight: of the votes, (n,).

    Raises:
        RewardRefused: the mean paired difference in log-loss is beyond two standard errors.
    """
    if len(new) < 16:
        return
    gap = (np.logaddexp(0.0, -new) - np.logaddexp(0.0, -old)) * weight / weight.mean()
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    if gap.mean() > 2 * error:
        raise RewardRefused(
            f"the new reward model is worse than its predecessor on {len(new)} votes that neither saw (log-loss "
            f"{gap.mean():+.3f}, two standard errors {2 * error:.3f}): the predecessor and the incumbent stay",
            test="predecessor",
        )
