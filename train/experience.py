"""What an iteration of PPO learns from: sampled answers with log-probs, rewards, values and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train import maths
from train.base import POLICY, Base, ReferenceChunk, policy_pass, reference_pass
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.reward.protocol import TokenRewardModel
from train.rollout import Sample


@dataclass(frozen=True, slots=True)
class Scored:
    """Sampled answers seen by the bare base and the reward model. Tensors (B, T), but `scores` (B,).

    Attributes:
        samples: the answers, row by row.
        mask: True at real tokens.
        sampled: log-probs that the sampler recorded.
        reference: log-probs under the base.
        reference_states: (B, T, H), the base's last hidden states, for a KL over the whole vocabulary; else (B, T, 0).
        rewards: of the reward model, token by token or in a lump at the end; before any penalty.
        scores: the reward model's score of each answer.
        gold: (B, T), rewards of the witness, a model of votes that the reward model never saw (`train.gold`); or None.
    """

    samples: Sequence[Sample]
    mask: Tensor
    sampled: Tensor
    reference: Tensor
    reference_states: Tensor
    rewards: Tensor
    scores: Tensor
    gold: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Old:
    """The policy that sampled, as the trainer sees it: `logprobs` (B, T), `states` (B, T, H) that a critic on its trunk
    reads, else (B, T, 0)."""

    logprobs: Tensor
    states: Tensor


def score(
    base: Base,
    samples: Sequence[Sample],
    reward: TokenRewardModel,
    config: TrainConfig,
    *,
    witness: TokenRewardModel | None = None,
) -> Scored:
    """One adapters-off pass gives the reference's log-probs and the states that the reward models read."""
    mask = response_mask(samples, base.device)
    reference, rewards = torch.zeros(mask.shape, device=base.device), torch.zeros(mask.shape, device=base.device)
    states = torch.zeros((*mask.shape, base.width if config.ppo.exact_kl else 0), device=base.device)
    gold = None if witness is None else torch.zeros_like(rewards)
    layers = sorted({*reward.layers, *(() if witness is None else witness.layers)})
    chunks = reference_pass(
        base, samples, layers, temperature=config.rollout.temperature, budget=config.ppo.pass_tokens
    )
    for chunk in chunks:
        rows, width = torch.tensor(chunk.rows, device=base.device), chunk.logprobs.shape[1]
        rewards[rows, :width] = _answers_rewards(reward, chunk)
        if gold is not None and witness is not None:
            gold[rows, :width] = _answers_rewards(witness, chunk)
        reference[rows, :width] = chunk.logprobs
        if config.ppo.exact_kl:
            states[rows, :width] = chunk.states.float()
    sampled, scores = recorded(samples, mask), rewards.sum(1)
    if not bool(torch.isfinite(scores).all()):
        raise TrainingDiverged("the reward model gave a score that is not finite; refit it on a clean snapshot")
    if not bool(torch.isfinite(sampled).all() and torch.isfinite(reference).all()):
        raise TrainingDiverged(
            "the policy's log-probs are not finite; lower train.ppo.learning_rate (the incumbent is untouched)"
        )
    if config.reward.credit == "end":
        rewards = maths.at_last_token(scores, mask)
    return Scored(samples, mask, sampled, reference, states, rewards, scores, gold)


def _answers_rewards(model: TokenRewardModel, chunk: ReferenceChunk) -> Tensor:
    """Rewards of the answers' tokens, (B, T)."""
    packed = chunk.packed
    given = model.token_rewards(
        chunk.hidden, packed.token_ids, packed.prompt_mask, packed.sequence_response_mask
    ).float()
    places = torch.arange(packed.response_mask.shape[1], device=given.device)
    columns = places[None] + packed.prompt_mask.sum(1, keepdim=True)
    answers = given.gather(1, columns.clamp(max=given.shape[1] - 1))
    return torch.where(packed.response_mask, answers, 0.0)


def old_policy(
    base: Base, scored: Scored, batches: Sequence[Sequence[int]], config: TrainConfig, *, local: bool
) -> Old:
    """Log-probs and states of the policy that sampled: from a local sampler's record, or by a pass of the trainer.

    The pass runs in the `batches` of the update, so that the first ratio is 1 to the bit.
    """
    samples = scored.samples
    kept = config.ppo.advantage == "gae"
    states = torch.zeros((*scored.mask.shape, base.width if kept else 0), device=base.device)
    if local and config.ppo.old_logprobs == "sampler":
        width = scored.mask.shape[1]
        for row, sample in enumerate(samples if kept else ()):
            assert sample.states is not None, "a local sampler keeps its states"
            states[row, : min(width, len(sample.response_ids))] = sample.states
        return Old(scored.sampled, states)
    logprobs = torch.zeros(scored.mask.shape, device=base.device)
    for batch in batches:
        with torch.no_grad():
            found = policy_pass(
                base, [samples[row] for row in batch], adapter=POLICY, temperature=config.rollout.temperature
            )
        rows, width = torch.tensor(batch, device=base.device), found.mask.shape[1]
        logprobs[rows, :width] = found.logprobs
        if kept:
            states[rows, :width] = found.states.float()
    return Old(logprobs, states)


def shaped(scored: Scored, old: Old, coefficient: float, config: TrainConfig, divisor: float = 1.0) -> Tensor:
    """The rewards that PPO maximises, (B, T): scaled, clipped, with what a missing end costs, less the KL's price.

    Args:
        scored: the answers.
        old: the policy that sampled them.
        coefficient: price of a nat.
        config: `ppo` of it.
        divisor: of the reward model's rewards.
    """
    ppo = config.ppo
    rewards = scored.rewards if divisor == 1.0 else scored.rewards / divisor
    if ppo.reward_clip is not None:
        rewards = rewards.clamp(-ppo.reward_clip, ppo.reward_clip)
    cut = torch.tensor([s.finish_reason == "length" for s in scored.samples], device=rewards.device)
    if ppo.missing_eos_score is not None:
        instead = maths.at_last_token(torch.full_like(scored.scores, ppo.missing_eos_score), scored.mask)
        rewards = torch.where(cut[:, None], instead, rewards)
    if ppo.missing_eos_penalty:
        rewards = rewards - maths.at_last_token(ppo.missing_eos_penalty * cut.float(), scored.mask)
    if ppo.kl_in == "loss" or ppo.kl_estimator == "exact":
        return rewards
    return maths.kl_shaped_rewards(
        rewards, maths.kl(old.logprobs, scored.reference, ppo.kl_estimator), coefficient, scored.mask
    )


def response_mask(samples: Sequence[Sample], device: torch.device) -> Tensor:
    """(B, T), True at the answers' tokens."""
    lengths = torch.tensor([len(sample.response_ids) for sample in samples], device=device)
    return torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]


def recorded(samples: Sequence[Sample], mask: Tensor) -> Tensor:
    """(B, T), the sampler's log-probs."""
    table = torch.zeros(mask.shape, device=mask.device)
    for row, sample in enumerate(samples):
        table[row, : len(sample.logprobs)] = torch.tensor(sample.logprobs, device=mask.device)
    return table
