"""Advantages behind one seam: `gae` with a critic, `rloo` and `grpo` from the other answers to the same prompt.

Only `gae` has a critic: for the other two none is built, run or checkpointed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from train import maths
from train.base import Base
from train.config import PpoConfig, TrainConfig
from train.critic import Critic
from train.experience import Old, Scored
from train.reward.protocol import TokenRewardModel


@dataclass(frozen=True, slots=True)
class CriticTargets:
    """What the critic learns. `states` (B, T, H); `values` at sampling time and `returns` (B, T)."""

    states: Tensor
    values: Tensor
    returns: Tensor

    def of(self, rows: Tensor, width: int) -> CriticTargets:
        """Of some rows, their first `width` tokens."""
        return CriticTargets(self.states[rows, :width], self.values[rows, :width], self.returns[rows, :width])


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the losses aim at.

    Attributes:
        advantages: (B, T), 0 outside the mask.
        unit: reward that one unit of advantage stands for, to price a KL in the loss.
        critic: what the critic learns, where there is one.
        explained_variance: of its values before the update, against the returns; 0 without a critic.
    """

    advantages: Tensor
    unit: float = 1.0
    critic: CriticTargets | None = None
    explained_variance: float = 0.0


class AdvantageEstimator(Protocol):
    """Turns an iteration's rewards into advantages."""

    @property
    def critic(self) -> Critic | None:
        """The critic, where there is one."""

    def estimate(self, scored: Scored, old: Old, rewards: Tensor, *, first: bool) -> Estimate:
        """Advantages of shaped rewards (B, T); `first`: the policy has not moved yet."""


def advantage_estimator(base: Base, reward: TokenRewardModel, config: TrainConfig) -> AdvantageEstimator:
    """The one that `ppo.advantage` names."""
    if config.ppo.advantage == "gae":
        return GaeAdvantages(Critic(base, reward, config), config.ppo)
    return GroupAdvantages(config.ppo)


class GaeAdvantages:
    """Generalised advantage estimation over a critic's values (Schulman et al. 2016)."""

    def __init__(self, critic: Critic, ppo: PpoConfig) -> None:
        self._critic, self._ppo = critic, ppo

    @property
    def critic(self) -> Critic | None:
        """The critic."""
        return self._critic

    def estimate(self, scored: Scored, old: Old, rewards: Tensor, *, first: bool) -> Estimate:
        """Values of a critic that has seen these answers' rewards only where it was cross-fitted; then GAE."""
        ppo, mask = self._ppo, scored.mask
        states = self._critic.states(scored.samples, old.states)
        values = self._critic.values(scored.samples, states, rewards, mask, first=first)
        found = maths.gae(rewards, values, mask, ppo.gamma, ppo.lam)
        advantages, unit = _whitened(found.advantages, mask, ppo)
        explained = float(maths.explained_variance(values, found.returns, mask))
        return Estimate(advantages, unit, CriticTargets(states, values, found.returns), explained)


class GroupAdvantages:
    """An answer against the others to its prompt; every token of it gets the same (`rloo`, `grpo`).

    The answer's worth is the sum of its shaped rewards, undiscounted: `gamma` and `lam` are GAE's.
    """

    critic = None

    def __init__(self, ppo: PpoConfig) -> None:
        self._ppo = ppo

    def estimate(self, scored: Scored, old: Old, rewards: Tensor, *, first: bool) -> Estimate:
        """Advantages without a critic."""
        ppo, mask = self._ppo, scored.mask
        worth = torch.where(mask, rewards, 0.0).sum(1)
        if ppo.advantage == "grpo":  # its groups are normalised already
            return Estimate(_spread(maths.group_normalised(worth, ppo.answers_per_prompt), mask))
        return Estimate(*_whitened(_spread(maths.leave_one_out(worth, ppo.answers_per_prompt), mask), mask, ppo))


def _whitened(advantages: Tensor, mask: Tensor, ppo: PpoConfig) -> tuple[Tensor, float]:
    """Advantages as `ppo.whiten_advantages` wants them, and the reward that one unit of them stands for."""
    if not ppo.whiten_advantages:
        return advantages, 1.0
    unit = max(float(advantages[mask].std(unbiased=False)), 1e-8)
    return maths.masked_whiten(advantages, mask), unit


def _spread(answers: Tensor, mask: Tensor) -> Tensor:
    """One number an answer (B,) at each of its tokens, (B, T)."""
    return torch.where(mask, answers[:, None], 0.0)
