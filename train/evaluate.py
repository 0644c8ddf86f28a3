"""A trained policy beside the base: fresh answers to the same prompts, and the probes that serving checks a load by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from feedback.contracts import ProbeRecord
from train import governor
from train.base import POLICY, Base, policy_pass, reference_pass
from train.reward.protocol import TokenRewardModel
from train.rollout import Sample
from train.sampler import LocalRollouts
from train.texts import TextReader

PROBE_QUESTIONS = (
    "What can you tell me about the sea?",
    "How do I boil an egg?",
    "What makes a good friend?",
)
"""What the probes ask: nothing that anybody asked here, since an adapter outlives what its voters may take back."""
PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Side:
    """Figures of one policy's answers, one an evaluation prompt."""

    samples: tuple[Sample, ...]
    scores: tuple[float, ...]
    reward: float
    kl: float
    length: float
    distinct_bigrams: float
    perplexity: float

    def metrics(self, prefix: str) -> dict[str, float]:
        """By name, for manifests and files."""
        names = ("reward", "kl", "length", "distinct_bigrams", "perplexity")
        return {f"{prefix}_{name}": float(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The base (before) and the policy (after) on the same prompts with the same noise.

    Attributes:
        win_rate: share of prompts where the policy's answer has the higher reward (a tie counts half): the reward
            model's own opinion, not a voter's.
    """

    before: Side
    after: Side
    win_rate: float

    def metrics(self) -> dict[str, float]:
        """Figures of both sides by name."""
        return {**self.before.metrics("base"), **self.after.metrics("policy"), "reward_win_rate": self.win_rate}


def evaluate(
    base: Base,
    reward: TokenRewardModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    budget: int,
    batch: int = 64,
) -> Evaluation:
    """Sample an answer to each prompt from the base and from the policy adapter, and compare.

    Args:
        base: with the policy adapter in place.
        reward: scores the answers.
        prompts: token ids.
        max_tokens, temperature, seed: of sampling.
        budget: tokens of a pass.
        batch: answers decoded at once.
    """
    sides = []
    for adapter in (None, POLICY):
        samples = LocalRollouts(base, adapter=adapter, batch=batch).generate(
            prompts, 1, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        sides.append(_side(base, reward, samples, temperature, budget))
    before, after = sides
    wins = [(a > b) + 0.5 * (a == b) for a, b in zip(after.scores, before.scores, strict=True)]
    return Evaluation(before, after, sum(wins) / len(wins))


def _side(base: Base, reward: TokenRewardModel, samples: list[Sample], temperature: float, budget: int) -> Side:
    scores = [0.0] * len(samples)
    reference: list[list[float]] = [[] for _ in samples]
    for chunk in reference_pass(base, samples, reward.layers, temperature=temperature, budget=budget):
        packed = chunk.packed
        rewards = reward.token_rewards(
            chunk.hidden, packed.token_ids, packed.prompt_mask, packed.sequence_response_mask
        )
        for row, score, logprobs, mask in zip(
            chunk.rows, rewards.sum(dim=1), chunk.logprobs, packed.response_mask, strict=True
        ):
            scores[row] = float(score)
            reference[row] = logprobs[mask].tolist()
    kl = sum(sum(s.logprobs) - sum(r) for s, r in zip(samples, reference, strict=True)) / len(samples)
    seen = governor.conduct([sample.response_ids for sample in samples], reference, kl)
    length = sum(len(sample.response_ids) for sample in samples) / len(samples)
    mean = sum(scores) / len(scores)
    return Side(tuple(samples), tuple(scores), mean, kl, length, seen.distinct_within, seen.perplexity)


def probe_answers(base: Base, texts: TextReader, *, temperature: float, seed: int) -> list[Sample]:
    """The policy's short answers to `PROBE_QUESTIONS`.

    Args:
        base: with the policy adapter in place.
        texts: reads questions through the base's chat template.
        temperature, seed: of sampling.
    """
    prompts = [texts.prompt_ids([{"role": "user", "content": question}]) for question in PROBE_QUESTIONS]
    return LocalRollouts(base).generate(prompts, 1, max_tokens=PROBE_TOKENS, temperature=temperature, seed=seed)


def make_probes(base: Base, samples: Sequence[Sample]) -> tuple[ProbeRecord, ...]:
    """Log-probs of the beginnings of some answers under the policy and under the base, as the trainer computes them."""
    turns = [Sample(s.prompt_ids, s.response_ids[:PROBE_TOKENS], (), "length") for s in samples if s.response_ids]
    with torch.no_grad():
        policy, bare = policy_pass(base, turns), policy_pass(base, turns, adapter=None)
    return tuple(
        ProbeRecord(
            prompt_token_ids=turn.prompt_ids,
            response_token_ids=turn.response_ids,
            policy_logprobs=tuple(policy.logprobs[row][policy.mask[row]].tolist()),
            base_logprobs=tuple(bare.logprobs[row][bare.mask[row]].tolist()),
        )
        for row, turn in enumerate(turns)
    )
