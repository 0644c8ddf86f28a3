"""Which comparisons are worth asking people about: where the ensemble's heads disagree on who would win.

A head k gives the first of two answers the probability p_k of winning (Bradley and Terry). What a vote would tell about
the heads is the mutual information of its outcome and the head that is right (Houlsby et al. 2011, 1112.5745):

    information = H(mean_k p_k) - mean_k H(p_k)        H(p) = -p ln p - (1 - p) ln(1 - p)

It is large where the heads disagree and each is sure; where all say "about even", a vote tells little. The plain
deviation of the score difference (`ensemble.disagreement`) grows with the difference itself, also where every head
names the same winner. Pure functions.
"""

from __future__ import annotations

import numpy as np

from train.reward.probe import Array, Rows


def information(leads: Array) -> Array:
    """Nats that a vote on each pair is expected to tell about the heads, (pairs,).

    Args:
        leads: by how many logits the first answer leads, by each head, (members, pairs).
    """
    won = 0.5 * (1.0 + np.tanh(leads / 2.0))  # the logistic function, which never overflows so
    return np.asarray(_entropy(won.mean(axis=0)) - _entropy(won).mean(axis=0))


def leads_of(scores: Array, members: Array, scale: float, first: Rows, second: Rows) -> Array:
    """The heads' leads of first answers over second ones in logits, (members, pairs).

    Args:
        scores: of answers by the mean head, (answers,).
        members: the heads' deviations from it, (members, answers).
        scale: logits a unit of score (`MixHead.scale`).
    """
    each = scale * (scores + members)
    return np.asarray(each[:, first] - each[:, second])


def chances(worth: Array, *, floor: float, sharpness: float) -> Array:
    """Probabilities to draw one of the candidates by, (n,): most where the worth is, some everywhere.

    Args:
        worth: of asking about each, (n,), at least 0.
        floor: probability that is spread evenly, so that nothing is never asked and propensities stay away from 0.
        sharpness: the rest goes by worth to this power; large picks the best.
    """
    top = worth.max(initial=0.0)
    even = np.full(len(worth), 1.0 / len(worth))
    if top <= 0:
        return even
    keen = (np.maximum(worth, 0.0) / top) ** sharpness
    return np.asarray(floor * even + (1.0 - floor) * keen / keen.sum())


def _entropy(p: Array) -> Array:
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-clipped * np.log(clipped) - (1 - clipped) * np.log(1 - clipped))
