"""Gold against KL: what votes that the reward model never saw say of a policy, and where that will peak.

With many votes a share of them is kept from the reward model. A second model, of those votes alone, reads the answers
of every iteration: it can't be fooled by what PPO found in the first one. Its mean follows d (alpha - beta log d) with
d = sqrt(KL) (Gao et al. 2022, eq. for RL); once that is clear, PPO stops at the predicted peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from train.config import GovernorConfig
from train.errors import OneSidedVotes
from train.reading import Read
from train.reward.mix import MixHead, answer_views, fit_weights, make_head
from train.reward.probe import Rows
from train.reward.votes import Votes, clear_of, folds

CLEAR = 1.64
"""Standard errors that beta must be above 0: one chance in twenty to see a bend where there is none."""
LEAST_POINTS = 4
"""For a level, alpha, beta and one to spare."""


@dataclass(frozen=True, slots=True)
class Point:
    """A policy: its `kl` in nats an answer, its answers' mean `gold` score, and the standard `error` of that mean."""

    kl: float
    gold: float
    error: float


def peak(points: Sequence[Point]) -> float | None:
    """KL in nats at which gold will be highest; None while the points don't show clearly that it bends.

    Weighted least squares of gold = level + d (alpha - beta log d), whose slope is 0 at d = exp(alpha / beta - 1).

    Args:
        points: the start (KL 0) and the policies since.
    """
    if len(points) < LEAST_POINTS:
        return None
    d = np.sqrt(np.maximum([point.kl for point in points], 0.0))
    bend = -d * np.log(np.where(d > 0, d, 1.0))
    design = np.stack([np.ones_like(d), d, bend], axis=1)
    weight = 1 / np.maximum([point.error for point in points], 1e-9)
    scaled = design * weight[:, None]
    if np.linalg.matrix_rank(scaled) < design.shape[1]:
        return None
    spread = np.linalg.inv(scaled.T @ scaled)
    _, alpha, beta = spread @ scaled.T @ (np.array([point.gold for point in points]) * weight)
    if not beta > CLEAR * math.sqrt(spread[2, 2]):
        return None
    return float(math.exp(2 * min(alpha / beta - 1, 10.0)))


def passed(points: Sequence[Point]) -> float | None:
    """The peak's KL if the last point stands beyond it and has in fact lost against the best one; else None."""
    best = max(points, key=lambda point: point.gold, default=None)
    if best is None or best.gold - points[-1].gold <= math.hypot(best.error, points[-1].error):
        return None
    top = peak(points)
    return top if top is not None and points[-1].kl >= top else None


def withheld(votes: Votes, config: GovernorConfig, seed: int) -> tuple[Rows, Rows]:
    """Rows for the reward model, and rows kept from it, which share neither a conversation nor an answer.

    Too few decisive votes: all for the reward model.
    """
    everything = np.arange(len(votes))
    none = everything[:0]
    if not config.enabled or votes.decisive < config.gold_votes or not config.gold_share:
        return everything, none
    fold = folds(votes.conversation, max(2, round(1 / config.gold_share)), seed)
    kept = np.flatnonzero(fold == 0)
    learnt = clear_of(votes, kept, np.flatnonzero(fold != 0))
    return (learnt, kept) if len(learnt) and len(kept) else (everything, none)


def of_rows(votes: Votes, rows: Rows) -> Votes:
    """Some of the votes; the answers stay numbered as they are."""

    arrays = ("first", "second", "tied", "both_bad", "weight", "margin", "conversation", "voter")
    columns = ("reasons", "vote_ids", "turns", "scripts")
    picked: dict[str, Any] = {name: getattr(votes, name)[rows] for name in arrays}
    picked |= {name: tuple(column[row] for row in rows) for name in columns if (column := getattr(votes, name))}
    return replace(votes, **picked)


def witness(read: Read, votes: Votes, base_fingerprint: str) -> MixHead | None:
    """The model of the votes that were kept; None where they tell no answer from another."""
    with threadpool_limits(1, user_api="blas"):
        try:
            fitted = fit_weights(
                read.pooled, votes, np.arange(len(votes)), answer_views(read.pooled, votes, read.spread)
            )
            return make_head(
                fitted,
                read.pooled,
                votes,
                layers=read.layers,
                vocabulary=read.vocabulary,
                base_fingerprint=base_fingerprint,
                metrics={},
            )
        except OneSidedVotes:
            return None


def load_witness(folder: Path) -> MixHead | None:
    """A cycle's model of the votes that were kept, if it has one."""
    return MixHead.load(folder) if (folder / "reward.json").is_file() else None
