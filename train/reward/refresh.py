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
from train.reward.chance import by_chance
from train.reward.config import RewardConfig
from train.reward.ensemble import bootstrap, disagreement
from train.reward.families import View
from train.reward.features import Vocabulary
from train.reward.judge import Judgement
from train.reward.last import LastHead, normalised, score_all, train_last
from train.reward.mix import MixHead, answer_views, fit_members, fit_problem, fit_weights, make_head, pose
from train.reward.probe import Array, Rows
from train.reward.votes import Votes, ballots, clear_of, folds, ranking_weights

TURNED_ROWS = 512
"""From more comparisons on, held-out accuracy tells as surely, and the draws of `by_chance` cost minutes."""
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
    known = predecessor if predecessor is not None and predecessor.weights.keys() == dict(pooled).keys() else None
    fresh = np.array([unseen_by_predecessor(row) for row in range(len(votes))], dtype=bool)
    votes = weighed(votes, config, fresh if known else np.ones(len(votes), dtype=bool))
    predicted = out_of_fold(pooled, seen, votes, votes.conversation, config.folds, seed)
    decisive = np.flatnonzero(~votes.tied)
    calm = judge.temperature(predicted[decisive], votes.weight[decisive])
    problem = pose(pooled, votes, np.arange(len(votes)), seen)
    fitted = fit_problem(problem)
    counts = bootstrap(votes.conversation, config.members, seed) if config.members > 1 else np.zeros((0, len(votes)))
    head = make_head(
        fitted,
        pooled,
        votes,
        layers=layers,
        vocabulary=vocabulary,
        base_fingerprint=base_fingerprint,
        metrics={},
        members=fit_members(problem, fitted, counts) if len(counts) else None,
        pessimism=config.pessimism,
    )
    scores = head.scores(pooled)
    judged = replace(
        judgement(calm * predicted, scores, votes),
        new_voters=_on_new_voters(pooled, seen, votes, config.folds, seed),
        raw_log_loss=judge.log_loss(predicted[decisive], votes.weight[decisive]),
        raw_ece=judge.calibration(predicted[decisive])[1],
        temperature=calm,
        disagreement=_disagreement(head, pooled, scores, votes),
        by_chance=by_chance(problem, ballots(votes), seed) if len(problem.vote) <= TURNED_ROWS else float("nan"),
    )
    old = None if known is None else known.scores(pooled) * known.scale
    if old is not None:
        moved, reordered = judge.drift(scores, old, votes.first, votes.second)
        judged = replace(judged, drift=moved, reordered=reordered)
    _refuse(judged, votes, decisive, config)
    if old is not None:
        rows = decisive[fresh[decisive]]
        led = old[votes.first[rows]] - old[votes.second[rows]]
        judge.refuse_if_worse(calm * predicted[rows], led, votes.weight[rows])
    figures = judged.metrics() | {f"scale_{name}": value for name, value in fitted.variance.items()}
    return Refreshed(replace(head, metrics=figures, scale=calm * head.scale), judged)


def weighed(votes: Votes, config: RewardConfig, fresh: NDArray[np.bool_]) -> Votes:
    """The votes with weights for rankings, and for those that the last reward model has learnt from already."""
    factor = ranking_weights(votes, config.rankings) * np.where(fresh, 1.0, config.old_votes)
    return replace(votes, weight=votes.weight * factor)


def _disagreement(head: MixHead, pooled: Mapping[str, Array], scores: Array, votes: Votes) -> float:
    if not head.members:
        return float("nan")
    doubt = disagreement(head.member_scores(pooled), votes.first, votes.second)
    led = scores[votes.first] - scores[votes.second]
    return float(doubt.mean() / max(led.std(), 1e-9))


def refresh_last(
    base: Base,
    votes: Votes,
    config: RewardConfig,
    seed: int,
    *,
    unseen_by_predecessor: Callable[[int], bool] = lambda row: True,
) -> tuple[LastHead, Judgement]:
    """Train the `last` head on most conversations and judge it on the rest.

    Args:
        base: the frozen model.
        votes: the snapshot's.
        config: settings.
        seed: of the folds, the head and the order.
        unseen_by_predecessor: whether the vote in a row was cast after the snapshot of the last published model.

    Raises:
        NotEnoughVotes: too few decisive votes, or conversations, to train on or to judge by.
        RewardRefused: no better than a coin, or a length meter.
    """
    _require_votes(votes, config)
    fold = folds(votes.conversation, max(2, round(1 / max(config.heldout, 0.05))), seed)
    held = np.flatnonzero((fold == 0) & ~votes.tied)
    if len(held) < 2:
        raise NotEnoughVotes("too few conversations to judge the reward model by; vote in more of them")
    votes = weighed(votes, config, np.array([unseen_by_predecessor(row) for row in range(len(votes))], dtype=bool))
    learnt = clear_of(votes, np.flatnonzero(fold == 0), np.flatnonzero(fold != 0))
    if not len(learnt):
        raise NotEnoughVotes(
            "every vote shares its conversation or an answer with those that the reward model is judged by: nothing is "
            "left to learn from; vote in more conversations"
        )
    head = train_last(base, votes, learnt, config, seed)
    scores = score_all(head, votes.answers)
    judged = judgement(scores[votes.first] - scores[votes.second], scores, votes, held)
    _refuse(judged, votes, held, config)
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
        unseen = np.flatnonzero(fold == held)
        learnt = clear_of(votes, unseen, np.flatnonzero(fold != held))
        if not len(learnt):
            continue  # every vote shares an answer with these: nothing is known of them, a coin's difference stays
        weights = fit_weights(pooled, votes, learnt, seen)
        predicted[unseen] = weights.differences(pooled, votes.first[unseen], votes.second[unseen])
    return predicted


def _require_votes(votes: Votes, config: RewardConfig) -> None:
    if votes.decisive < config.min_decisive:
        raise NotEnoughVotes(
            f"{votes.decisive} decisive votes in the snapshot, {config.min_decisive} are needed "
            "(train.reward.min_decisive): cast more votes"
        )


def _refuse(judged: Judgement, votes: Votes, held: Rows, config: RewardConfig) -> None:
    """Refuse what may not be trained against; `held` are the votes that `judged` is of."""
    lengths = response_lengths(votes)
    _, unequal = judge.longer_share(lengths[votes.first[held]], lengths[votes.second[held]])
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
    trusted_accuracy, trusted_votes = judge.trusted(difference, votes.weight[decisive])
    return Judgement(
        accuracy=judge.accuracy(difference),
        log_loss=judge.log_loss(difference, votes.weight[decisive]),
        ece=ece,
        length_correlation=judge.correlation(scores, lengths.astype(np.float64)),
        longer_preferred=longer,
        new_voters=float("nan"),
        votes=len(decisive),
        calibration=bins,
        length_controlled=judge.accuracy(
            judge.without_length(difference, (lengths[votes.first] - lengths[votes.second])[decisive].astype(float))
        ),
        slices=_slices(difference, votes, decisive, lengths),
        trusted_accuracy=trusted_accuracy,
        trusted_votes=trusted_votes,
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
    for turns in sorted({votes.turns[row] for row in decisive} if votes.turns else ()):
        masks[f"messages before: {turns}"] = np.array([votes.turns[row] == turns for row in decisive])
    for writing in sorted({votes.scripts[row] for row in decisive} if votes.scripts else ()):
        masks[f"script: {writing}"] = np.array([votes.scripts[row] == writing for row in decisive])
    for reason in sorted({r for row in decisive for r in votes.reasons[row]}):
        masks[f"reason: {reason}"] = np.array([reason in votes.reasons[row] for row in decisive])
    return {n: (judge.accuracy(difference[m]), int(m.sum())) for n, m in masks.items() if m.any()}
