"""Step 7 of PPO: minibatches through the clipped losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from train import maths
from train.advantage import CriticTargets, Estimate
from train.base import Base, policy_pass
from train.config import PpoConfig, TrainConfig
from train.critic import Critic
from train.errors import TrainingDiverged
from train.experience import Old, Scored
from train.heads import TokenScores, with_loss
from train.packing import Turn
from train.reward.foresight import Tilt
from train.team import ALONE, Team

POLICY_FIGURES = ("policy_loss", "entropy", "approx_kl", "clip_fraction", "ratio_error")
CRITIC_FIGURES = ("value_loss", "value_clip_fraction")
"""Of a micro-batch, joined by its share of the minibatch's tokens (the ratio's error: the largest)."""
RATIO_TOLERANCE = {"exact": 0.0, "half": 0.1, "float32": 1e-3, "bfloat16": 1.0}
"""How far a ratio of the first minibatch may be from 1: old log-probs by a pass of the trainer itself, by the local
sampler, by the local sampler with half-precision weights; by a pass of a base in half precision, whose kernels may
differ with and without a gradient."""

MEANS = (
    "entropy",
    "policy_loss",
    "value_loss",
    "approx_kl",
    "clip_fraction",
    "value_clip_fraction",
    "grad_norm",
)
"""Figures of an update that `IterationMetrics` holds as means over minibatches."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the losses aim at.

    Attributes:
        scored: the answers.
        old: the policy that sampled them.
        estimate: their advantages, and what the critic learns.
        weights: (B, T), importance weights that correct for the sampler, or None.
        tilt: gives rewards of candidate tokens at the places of some answers, or None.
        sharpening: factor on the reference's logits, for an exact KL.
    """

    scored: Scored
    old: Old
    estimate: Estimate
    weights: Tensor | None = None
    tilt: Callable[[Sequence[Turn]], Tilt | None] = lambda _turns: None
    sharpening: float = 1.0

    def reference(self, rows: Tensor) -> Tensor:
        """The sharpened reference's states at some rows: the head has no bias, so scaled states give scaled logits."""
        return self.sharpening * self.scored.reference_states[rows]


@dataclass(slots=True)
class UpdateFigures:
    """Means over an iteration's minibatches, and how it ended."""

    sums: dict[str, float] = field(default_factory=dict)
    updates: int = 0
    stopped_early: bool = False
    first_ratio_error: float = 0.0

    def add(self, figures: dict[str, float]) -> None:
        """Count one minibatch."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.updates += 1

    def mean(self, name: str) -> float:
        """Mean over minibatches."""
        return self.sums.get(name, 0.0) / max(self.updates, 1)

    def means(self) -> dict[str, Any]:
        """All that `IterationMetrics` takes from an update."""
        return {name: self.mean(name) for name in MEANS} | {
            "updates": self.updates,
            "stopped_early": self.stopped_early,
            "first_ratio_error": self.first_ratio_error,
        }


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Scalar `loss` that carries the gradient, `figures` of it, and the `mask` (B, T) of its rows."""

    loss: Tensor
    figures: dict[str, float]
    mask: Tensor


def policy_objective(
    base: Base, micro: Sequence[int], targets: Targets, coefficient: float, config: TrainConfig
) -> PolicyObjective:
    """The policy's loss on some rows: the clipped surrogate, less the entropy's bonus, plus the KL's price.

    L = L_clip - c_H H + (beta KL - E[foreseen]) / unit, each a mean over real tokens.

    Args:
        base: with the policy adapter.
        micro: rows of `targets`.
        targets: what to aim at.
        coefficient: beta, in units of reward a nat.
        config: `ppo` and `rollout` of it.
    """
    rows = torch.tensor(micro, device=targets.scored.mask.device)
    turns = [targets.scored.samples[row] for row in micro]
    terms = PolicyTerms.of(rows, targets, coefficient, config)
    found = policy_pass(
        base,
        turns,
        temperature=config.rollout.temperature,
        entropy_grad=config.ppo.entropy_coefficient > 0,
        reference=targets.reference(rows) if config.ppo.exact_kl else None,
        tilt=targets.tilt(turns),
        loss=lambda at, scores: terms.loss(at, scores)[0],
    )
    with torch.no_grad():
        columns = (found.logprobs, found.entropy, found.kl, found.foreseen, found.expected)
        scores = with_loss([column[found.mask] for column in columns], found.loss)
        _, policy = terms.loss(slice(0, len(scores.logprobs)), scores)
        drift = (scores.logprobs - terms.old).abs().max()
    figures = {
        "policy_loss": float(policy.loss),
        "entropy": float(scores.entropy.mean()),
        "approx_kl": float(policy.approx_kl),
        "clip_fraction": float(policy.clip_fraction),
        "ratio_error": float(torch.expm1(drift)),
    }
    return PolicyObjective(found.loss, figures, found.mask)


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What the policy's loss is made of, for the M real tokens of some rows, one answer after another.

    Attributes:
        old: (M,), log-probs under the policy that sampled; so are the next three.
        advantages: whitened.
        weights: importance weights, or None.
        reference: log-probs under the base, for an estimated KL.
        unit: reward that a whitened advantage of 1 stands for.
        coefficient: beta, in units of reward a nat.
        ppo: settings.
    """

    old: Tensor
    advantages: Tensor
    weights: Tensor | None
    reference: Tensor
    unit: float
    coefficient: float
    ppo: PpoConfig

    @classmethod
    def of(cls, rows: Tensor, targets: Targets, coefficient: float, config: TrainConfig) -> PolicyTerms:
        """Those of some rows of `targets`."""
        real = targets.scored.mask[rows]
        weights = targets.weights
        return cls(
            old=targets.old.logprobs[rows][real],
            advantages=targets.estimate.advantages[rows][real],
            weights=None if weights is None else weights[rows][real],
            reference=targets.scored.reference[rows][real],
            unit=targets.estimate.unit,
            coefficient=coefficient,
            ppo=config.ppo,
        )

    def loss(self, at: slice, scores: TokenScores) -> tuple[Tensor, maths.PolicyLoss]:
        """The part () that the tokens `at` have in the loss, and the clipped surrogate's own figures over them."""
        ppo = self.ppo
        real = torch.ones_like(scores.logprobs, dtype=torch.bool)
        # what was foreseen counts by its expectation, so the sampled term must not count it again
        surprise = (scores.foreseen - scores.expected.detach()) / self.unit
        policy = maths.policy_loss(
            scores.logprobs[None],
            self.old[None, at],
            (self.advantages[at] - surprise)[None],
            real[None],
            clip=ppo.clip,
            weights=None if self.weights is None else self.weights[None, at],
        )
        loss = policy.loss - ppo.entropy_coefficient * scores.entropy.mean() - scores.expected.mean() / self.unit
        if ppo.kl_in == "loss":
            price = scores.kl
            if ppo.kl_estimator != "exact":
                price = maths.kl(scores.logprobs[None], self.reference[None, at], ppo.kl_estimator)
            # in units of whitened advantages, as every other reward is
            loss = loss + self.coefficient / self.unit * price.mean()
        return loss * (len(scores.logprobs) / len(self.old)), policy


def critic_objective(
    critic: Critic, turns: Sequence[Turn], targets: CriticTargets, mask: Tensor, config: TrainConfig
) -> maths.ValueLoss:
    """The critic's clipped loss on `turns`, whose targets and `mask` (B, T) these are."""
    values = critic.predict(turns, targets.states, mask)
    return maths.value_loss(values, targets.values, targets.returns, mask, config.ppo.value_clip)


class Updater:
    """The policy's and the critic's optimisation."""

    def __init__(
        self,
        base: Base,
        policy: tuple[list[nn.Parameter], torch.optim.Optimizer],
        critic: Critic | None,
        config: TrainConfig,
        team: Team = ALONE,
    ) -> None:
        self._base, self._critic, self._config, self._team = base, critic, config, team
        self._weights, self._optimiser = policy

    def run(
        self,
        plan: Sequence[Sequence[Sequence[Sequence[int]]]],
        targets: Targets,
        *,
        exact: bool,
        coefficient: float,
        step_done: Callable[[int], None],
    ) -> UpdateFigures:
        """Go through epochs, minibatches and micro-batches of rows.

        Args:
            plan: rows by epoch, minibatch and micro-batch.
            targets: what to aim at.
            exact: whether the old log-probs come from the same pass, so that the first ratio is 1 to the bit.
            coefficient: price of a nat, for a KL in the loss.
            step_done: told how many episodes have gone through.

        Raises:
            TrainingDiverged: a loss or a gradient is not finite, or the first ratio is not 1.
        """
        figures = UpdateFigures()
        seen = 0
        for minibatch in (minibatch for epoch in plan for minibatch in epoch):
            found = self._accumulate(minibatch, targets, coefficient)
            if figures.updates == 0:
                figures.first_ratio_error = found.pop("ratio_error")
                self._check_first_ratio(figures.first_ratio_error, exact)
            found.pop("ratio_error", None)
            limit = self._config.ppo.max_approx_kl
            if limit is not None and found["approx_kl"] > limit:
                for _, optimiser in self._trained():
                    optimiser.zero_grad(set_to_none=True)
                figures.stopped_early = True
                break
            found["grad_norm"] = self._step()
            figures.add(found)
            seen += sum(map(len, minibatch)) * self._team.size
            step_done(seen)
        return figures

    def _accumulate(self, minibatch: Sequence[Sequence[int]], targets: Targets, coefficient: float) -> dict[str, float]:
        """Gradients of one minibatch, in micro-batches weighted by their tokens: the same as in one go.

        Of several processes each has its own rows; one that has fewer goes along with a row that weighs nothing.
        """
        mask = targets.scored.mask
        total = self._team.total(float(mask[[row for micro in minibatch for row in micro]].sum()))
        valued = self._critic is not None and targets.estimate.critic is not None
        sums = dict.fromkeys(POLICY_FIGURES + (CRITIC_FIGURES if valued else ()), 0.0)
        idle = self._team.rounds(len(minibatch)) - len(minibatch)
        for micro, counts in [*((micro, 1.0) for micro in minibatch), *([([0], 0.0)] * idle)]:
            rows = torch.tensor(micro, device=mask.device)
            share = counts * float(mask[rows].sum()) / total
            for name, value in self._micro(micro, rows, targets, coefficient, share).items():
                joined = max(sums[name], counts * value) if name == "ratio_error" else sums[name] + share * value
                sums[name] = joined
        sums = self._team.figures(sums, largest="ratio_error")
        self._check_finite(sums["policy_loss"], sums.get("value_loss", 0.0))
        for weights, _ in self._trained():
            self._team.sum_gradients(weights)
        return sums

    def _micro(
        self, micro: Sequence[int], rows: Tensor, targets: Targets, coefficient: float, share: float
    ) -> dict[str, float]:
        policy = policy_objective(self._base, micro, targets, coefficient, self._config)
        self._backward(policy.loss * share)
        figures = policy.figures
        if self._critic is not None and targets.estimate.critic is not None:
            turns = [targets.scored.samples[row] for row in micro]
            aims = targets.estimate.critic.of(rows, policy.mask.shape[1])
            value = critic_objective(self._critic, turns, aims, policy.mask, self._config)
            if not self._critic.refitted:  # a head that is fitted anew each iteration has nothing to learn from steps
                self._backward(self._config.ppo.value_coefficient * value.loss * share)
            figures |= {"value_loss": float(value.loss.detach()), "value_clip_fraction": float(value.clip_fraction)}
        return figures

    def _backward(self, loss: Tensor) -> None:
        if self._team.size == 1:  # several find it out together, so that none waits for another
            self._check_finite(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]

    def _check_finite(self, *losses: float) -> None:
        if not all(map(math.isfinite, losses)):
            raise TrainingDiverged("a loss is not finite; lower train.ppo.learning_rate (the incumbent is untouched)")

    def _trained(self) -> list[tuple[list[nn.Parameter], torch.optim.Optimizer]]:
        """Weights and optimiser of the policy, and of the critic if there is one."""
        critic = [] if self._critic is None else [(self._critic.weights, self._critic.optimiser)]
        return [(self._weights, self._optimiser), *critic]

    def _step(self) -> float:
        """Clip and step; the norm of the policy's gradient before clipping."""
        limit = self._config.ppo.max_grad_norm
        norms = [self._team.clip(weights, limit) for weights, _ in self._trained()]
        if not all(map(math.isfinite, norms)):
            raise TrainingDiverged(
                "a gradient is not finite; lower train.ppo.learning_rate (the incumbent is untouched)"
            )
        for _, optimiser in self._trained():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return norms[0]

    def _check_first_ratio(self, error: float, exact: bool) -> None:
        allowed = RATIO_TOLERANCE["exact" if exact else self._config.rollout.dtype]
        if self._base.dtype != torch.float32:
            allowed = max(allowed, RATIO_TOLERANCE["half"])
        if not error <= allowed:
            raise TrainingDiverged(
                f"the first minibatch's ratio is off by {error:.2g} before any update (at most {allowed:g}): sampler"
                " and trainer disagree about the policy"
            )
