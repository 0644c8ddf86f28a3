"""What PPO reports: the figures of each iteration, and what a run ended with."""

from __future__ import annotations

from dataclasses import dataclass, field

from train.finals import Final
from train.governor import Judgement
from train.rollout import Sample


@dataclass(frozen=True, slots=True)
class IterationMetrics:
    """Figures of one iteration. Those of the answers describe the policy before this iteration's update.

    Attributes:
        iteration: 0 is the policy that training began with.
        episodes: answers sampled.
        score: mean of the reward model.
        score_std: its standard deviation.
        kl: nats an answer to the base (k1 summed over tokens).
        objective: mean score less the KL's price.
        length: tokens an answer.
        eos_share: answers that ended by themselves.
        distinct_within: see `governor.Conduct`; so are the next two.
        distinct_across: of all answers together.
        perplexity: under the base.
        kl_coefficient: in force during the iteration; so are `topic_price` and `fluency_price` (`governor.Prices`).
        topic: see `governor.Conduct`.
        gold: mean score of the witness (`train.gold`), None without one; `gold_error` is the mean's standard error.
        sampler_mismatch: mean |log-prob of the sampler - old log-prob|, nats a token.
        importance_capped: share of tokens whose importance weight was cut off at `ppo.tis_cap`.
        reward_divisor: by which `ppo.reward_scaling` divided the rewards.
        explained_variance: of the values before the update, against the returns.
        entropy: mean over tokens, nats.
        policy_loss: mean over minibatches; so are the next ones.
        value_loss: of the critic.
        approx_kl: between sampling and trained policy, nats a token.
        clip_fraction: share of tokens clipped.
        value_clip_fraction: the same of the critic's loss.
        grad_norm: of the policy before clipping.
        first_ratio_error: largest |ratio - 1| in the first minibatch.
        updates: optimiser steps taken.
        stopped_early: whether the approximate KL ended the updates.
        seconds: of each phase.
    """

    iteration: int
    episodes: int
    score: float
    score_std: float
    kl: float
    objective: float
    length: float
    eos_share: float
    distinct_within: float
    distinct_across: float
    perplexity: float
    kl_coefficient: float
    topic: float = 1.0
    topic_price: float = 0.0
    fluency_price: float = 0.0
    gold: float | None = None
    gold_error: float | None = None
    sampler_mismatch: float = 0.0
    importance_capped: float = 0.0
    reward_divisor: float = 1.0
    explained_variance: float = 0.0
    entropy: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    approx_kl: float = 0.0
    clip_fraction: float = 0.0
    value_clip_fraction: float = 0.0
    grad_norm: float = 0.0
    first_ratio_error: float = 0.0
    updates: int = 0
    stopped_early: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PpoResult:
    """What a run ended with; the policy adapter holds the chosen policy.

    Attributes:
        chosen: iteration whose policy was chosen (0: nothing better than the start within the governor's bounds).
        metrics: of every iteration; the last one judges the final policy and has no update.
        judgements: the governor's, as many.
        before: answers of the policy that training began with.
        after: answers of the last policy that was judged.
        finals: of the best policies on fresh answers (`train.finals`); empty where none were held.
    """

    chosen: int
    metrics: tuple[IterationMetrics, ...]
    judgements: tuple[Judgement, ...]
    before: tuple[Sample, ...]
    after: tuple[Sample, ...]
    finals: tuple[Final, ...] = ()
