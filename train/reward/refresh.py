"""From a snapshot's votes to a judged reward model: the reward half of a cycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from train.base import Base
from train.errors import NotEnoughVotes
from train.reward import judge
from train.reward.config import RewardConfig
from train.reward.families import View
from train.reward.features import Vocabulary
from train.reward.judge import Judgement
from train.reward.last import LastHead, normalised, score_all, train_last
from train.reward.mix import MixHead, answer_views, fit_weights, make_head
from train.reward.probe import Array, Rows
from train.reward.votes import Votes, folds

MIN_VOTERS = 4
"""Fewest voters for a figure on voters never seen."""
MANY_VOTES = 4_000
"""So many make matrices that are worth several threads."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A new head and what is known of it."""

    head: MixHead
    judgement: Judgement


def refresh(
    pooled: Mapping[str, Array],
    votes: Votes,
    config: RewardConfig,
    *,
    layers: tuple[int, ...],
    vocabulary: Vocabulary,
    base_fingerprint: str,
    spread: Mapping[str, Array] | None = None,
    predecessor: MixHead | None = None,
    unseen_by_predecessor: Callable[[int], bool] = lambda row: False,
    seed: int = 0,
) -> Refreshed:
    """Judge by cross-validation, then fit on all votes.

    Args:
        pooled: features of `votes.answers` by block.
        votes: the snapshot's.
        config: settings.
        layers, vocabulary, base_fingerprint: what the features were made with.
        spread: covariance of answer tokens by block (`FeatureReader.token_covariance`).
        predecessor: the last head, if its features are the same.
        unseen_by_predecessor: whether the vote in a row was cast after the predecessor's snapshot.
        seed: of the folds.

    Raises:
        NotEnoughVotes: fewer decisive votes than `config.min_decisive`, or all of one conversation.
        RewardRefused: no better than a coin, a length meter, or worse than the predecessor.
    """
    _require_votes(votes, config)
    seen = answer_views(pooled, votes, spread or {})
    # Hundreds of votes make small matrices: beside serving, BLAS threads that wait for each other cost a factor of 16.
    with threadpool_limits(1 if len(votes) < MANY_VOTES else None, user_api="blas"):
        return _refresh(
            pooled, seen, votes, config, layers, vocabulary, base_fingerprint, predecessor, unseen_by_predecessor, seed
        )


def _refresh(  # noqa: PLR0917 - `refresh`, within its limit of threads
    pooled: Mapping[str, Array],
    seen: Mapping[str, View],
    votes: Votes,
    config: RewardConfig,
    layers: tuple[int, ...],
    vocabulary: Vocabulary,
    base_fingerprint: str,
    predecessor: MixHead | None,
    unseen_by_predecessor: Callable[[int], bool],
    seed: int,
) -> Refreshed:
    predicted = out_of_fold(pooled, seen, votes, votes.conversation, config.folds, seed)
    decisive = np.flatnonzero(~votes.tied)
    calm = judge.temperature(predicted[decisive], votes.weight[decisive])
    predicted = calm * predicted
    fitted = fit_weights(pooled, votes, np.arange(len(votes)), seen)
    head = make_head(
        fitted, pooled, votes, layers=layers, vocabulary=vocabulary, base_fingerprint=base_fingerprint, metrics={}
    )
    judged = judgement(predicted, head.scores(pooled), votes)
    judged = replace(judged, new_voters=_on_new_voters(pooled, seen, votes, config.folds, seed))
    _refuse(judged, votes, config)
    if predecessor is not None and predecessor.weights.keys() == dict(pooled).keys():
        rows = np.array([r for r in decisive if unseen_by_predecessor(int(r))], dtype=np.int64)
        old = predecessor.scores(pooled) * predecessor.scale
        judge.refuse_if_worse(predicted[rows], old[votes.first[rows]] - old[votes.second[rows]], votes.weight[rows])
    figures = judged.metrics() | {f"scale_{name}": value for name, value in fitted.variance.items()}
    return Refreshed(replace(head, metrics=figures, scale=calm * head.scale), judged)


def refresh_last(base: Base, votes: Votes, config: RewardConfig, seed: int) -> tuple[LastHead, Judgement]:
    """Train the `last` head on most conversations and judge it on the rest.

    Raises:
        NotEnoughVotes: too few decisive votes to train on or to judge by.
        RewardRefused: no better than a coin, or a length meter.
    """
    _require_votes(votes, config)
    fold = folds(votes.conversation, max(2, round(1 / max(config.heldout, 0.05))), seed)
    held = np.flatnonzero((fold == 0) & ~votes.tied)
    if len(held) < 2:
        raise NotEnoughVotes("too few conversations to judge the reward model by; vote in more of them")
    head = train_last(base, votes, np.flatnonzero(fold != 0), config, seed)
    scores = score_all(head, votes.answers)
    judged = judgement(scores[votes.first] - scores[votes.second], scores, votes, held)
    _refuse(judged, votes, config)
    return normalised(head, scores, judged.metrics()), judged


def out_of_fold(  # noqa: PLR0917 - what, seen how, by whom, in how many folds
    pooled: Mapping[str, Array], seen: Mapping[str, View], votes: Votes, groups: Rows, count: int, seed: int
) -> Array:
    """Score difference (logits) of each vote from a fit that saw no vote of its group, (n,).

    Raises:
        NotEnoughVotes: all votes are of one group.
    """
    distinct = len(np.unique(groups))
    if distinct < 2:
        raise NotEnoughVotes(
            "all votes are of one conversation: nothing is left to judge a reward model by; vote in more conversations"
        )
    fold = folds(groups, min(count, distinct), seed)
    predicted = np.zeros(len(votes))
    for held in np.unique(fold):
        learnt, unseen = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        weights = fit_weights(pooled, votes, learnt, seen)
        predicted[unseen] = weights.differences(pooled, votes.first[unseen], votes.second[unseen])
    return predicted


def _require_votes(votes: Votes, config: RewardConfig) -> None:
    if votes.decisive < config.min_decisive:
        raise NotEnoughVotes(
            f"{votes.decisive} decisive votes in the snapshot, {config.min_decisive} are needed "
            "(train.reward.min_decisive): cast more votes"
        )


def _refuse(judged: Judgement, votes: Votes, config: RewardConfig) -> None:
    lengths, decisive = response_lengths(votes), np.flatnonzero(~votes.tied)
    _, unequal = judge.longer_share(lengths[votes.first[decisive]], lengths[votes.second[decisive]])
    judge.refuse_unless_fit(judged, config.max_length_correlation, unequal)


def judgement(predicted: Array, scores: Array, votes: Votes, held: Rows | None = None) -> Judgement:
    """Figures of held-out predictions.

    Args:
        predicted: held-out score differences, (n,).
        scores: of all answers under the final fit.
        votes: the votes.
        held: decisive votes to judge by; all of them where every prediction is held out.
    """
    decisive = np.flatnonzero(~votes.tied) if held is None else held
    difference = predicted[decisive]
    lengths = response_lengths(votes)
    longer, _ = judge.longer_share(lengths[votes.first[decisive]], lengths[votes.second[decisive]])
    bins, ece = judge.calibration(difference)
    return Judgement(
        accuracy=judge.accuracy(difference),
        log_loss=judge.log_loss(difference, votes.weight[decisive]),
        ece=ece,
        length_correlation=judge.correlation(scores, lengths.astype(np.float64)),
        longer_preferred=longer,
        new_voters=float("nan"),
        votes=len(decisive),
        calibration=bins,
        slices=_slices(difference, votes, decisive, lengths),
    )


def response_lengths(votes: Votes) -> Rows:
    """Tokens of each answer, (answers,)."""
    return np.array([len(answer.response_ids) for answer in votes.answers], dtype=np.int64)


def _on_new_voters(pooled: Mapping[str, Array], seen: Mapping[str, View], votes: Votes, count: int, seed: int) -> float:
    if len(np.unique(votes.voter)) < MIN_VOTERS:
        return float("nan")
    predicted = out_of_fold(pooled, seen, votes, votes.voter, count, seed)
    return judge.accuracy(predicted[~votes.tied])


def _slices(difference: Array, votes: Votes, decisive: Rows, lengths: Rows) -> dict[str, tuple[float, int]]:
    longer = lengths[votes.first[decisive]] - lengths[votes.second[decisive]]
    prompt = np.array([len(votes.answers[i].prompt_ids) for i in votes.first[decisive]])
    masks: dict[str, NDArray[np.bool_]] = {
        "winner longer": longer > 0,
        "winner shorter": longer < 0,
        "equal length": longer == 0,
        "short prompt": prompt <= np.median(prompt),
        "long prompt": prompt > np.median(prompt),
    }
    for reason in sorted({r for row in decisive for r in votes.reasons[row]}):
        masks[f"reason: {reason}"] = np.array([reason in votes.reasons[row] for row in decisive])
    return {n: (judge.accuracy(difference[m]), int(m.sum())) for n, m in masks.items() if m.any()}
