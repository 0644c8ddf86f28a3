"""The mathematics of PPO: pure functions, tensors in and tensors out.

Every per-token tensor is (B, T), response tokens only; `mask` is True at a real token. Nothing here knows of a model, a
device or a configuration. Names and equations follow Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et
al. 2019 (RLHF), and Schulman's note on approximating KL (2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class Advantages:
    """Result of `gae`: `advantages` and `returns` (B, T), float32, zero outside the mask."""

    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Result of `policy_loss`.

    Attributes:
        loss: scalar to minimise.
        clip_fraction: share of real tokens whose clipped term was the active one.
        approx_kl: mean k3 estimate of KL(old || new) over real tokens, in nats a token.
        ratio_mean: mean probability ratio over real tokens.
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio_mean: Tensor


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """Result of `value_loss`: scalar `loss`, and the share of real tokens at which clipping was active."""

    loss: Tensor
    clip_fraction: Tensor


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each id.

    log p_t = (z_t[id_t] - logsumexp(z_t)) with z = logits / temperature, in float32.

    Args:
        logits: (B, T, V); row t predicts `ids[:, t]`.
        ids: (B, T), integers.
        temperature: the sampling temperature; the same in the old and the new pass.

    Returns:
        (B, T) float32.
    """
    _same_shape(logits[..., 0], ids)
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each row's distribution, H = logsumexp(z) - sum softmax(z) z, in nats.

    Args:
        logits: (B, T, V).
        temperature: the sampling temperature.

    Returns:
        (B, T) float32.
    """
    assert logits.dim() == 3, f"logits must be (B, T, V), not {tuple(logits.shape)}"
    scaled = logits.float() / temperature
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * scaled).sum(-1)


def kl(logprobs: Tensor, reference: Tensor, estimator: KlEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    With r = log p_reference - log p_policy: k1 = -r (unbiased, may be negative), k2 = r^2 / 2 (low variance, biased),
    k3 = exp(r) - 1 - r (unbiased and never negative).

    Args:
        logprobs: (B, T) under the policy.
        reference: (B, T) under the reference.
        estimator: which of the three.

    Returns:
        (B, T).
    """
    _same_shape(logprobs, reference)
    ratio = reference - logprobs
    if estimator == "k1":
        return -ratio
    if estimator == "k2":
        return 0.5 * ratio.square()
    return torch.expm1(ratio) - ratio


def kl_shaped_rewards(rewards: Tensor, kl_tokens: Tensor, coefficient: float, mask: Tensor) -> Tensor:
    """The reward that PPO maximises: reward_t - coefficient * kl_t at real tokens, 0 elsewhere.

    Args:
        rewards: (B, T) of the reward model; a score in one lump stands at the last real token.
        kl_tokens: (B, T) from `kl`.
        coefficient: beta, the price of a nat.
        mask: (B, T).

    Returns:
        (B, T) float32.
    """
    _same_shape(rewards, kl_tokens, mask)
    return torch.where(mask, rewards.float() - coefficient * kl_tokens.float(), 0.0)


def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """Put one score a sequence at its last real token.

    Args:
        scores: (B,).
        mask: (B, T), at least one real token a row, all at the front.

    Returns:
        (B, T), zero elsewhere.
    """
    assert scores.shape == mask.shape[:1], f"scores {tuple(scores.shape)} do not fit mask {tuple(mask.shape)}"
    last = mask.sum(1) - 1
    assert bool((last >= 0).all()), "a response without a token has no last token"
    placed = torch.zeros(mask.shape, dtype=torch.float32, device=scores.device)
    return placed.scatter(1, last.unsqueeze(1), scores.float().unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016), in float32.

    delta_t = r_t + gamma * V_{t+1} - V_t;  A_t = delta_t + gamma * lam * A_{t+1};  return_t = A_t + V_t.
    The answer ends at its last real token: V and A one step past it are 0.

    Args:
        rewards: (B, T), already shaped.
        values: (B, T), V of the state in which token t is chosen.
        mask: (B, T), real tokens at the front.
        gamma: discount.
        lam: lambda, between TD (0) and Monte Carlo (1).

    Returns:
        Advantages and returns, zero outside the mask.
    """
    _same_shape(rewards, values, mask)
    keep = mask.float()
    rewards, values = rewards.float() * keep, values.float() * keep
    following = torch.zeros_like(values[:, 0])
    advantage = torch.zeros_like(following)
    columns: list[Tensor] = []
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = (delta + gamma * lam * advantage) * keep[:, t]
        following = values[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return Advantages(advantages, (advantages + values) * keep)


def leave_one_out(scores: Tensor, group: int) -> Tensor:
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019; RLOO, Ahmadian et al. 2024).

    A_i = R_i - mean of R_j over the other answers to the same prompt.

    Args:
        scores: (B,), the answers to one prompt side by side.
        group: answers a prompt, at least 2.

    Returns:
        (B,) float32; each group adds up to 0.
    """
    grouped = _grouped(scores, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()


def group_normalised(scores: Tensor, group: int, epsilon: float = 1e-4) -> Tensor:
    """Group-relative advantages (GRPO, Shao et al. 2024): A_i = (R_i - mean) / (std + epsilon) over a prompt's answers.

    Args:
        scores: (B,), the answers to one prompt side by side.
        group: answers a prompt, at least 2.
        epsilon: keeps answers of equal score at 0. The standard deviation is the sample's (divided by group - 1).

    Returns:
        (B,) float32; each group adds up to 0.
    """
    grouped = _grouped(scores, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    return (centred / (grouped.std(1, keepdim=True) + epsilon)).flatten()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` (B, T) over real tokens, scalar; 0 when there are none."""
    _same_shape(x, mask)
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Whiten over real tokens: (x - mean) / sqrt(variance + epsilon), centred, 0 outside the mask.

    The mean is not added back (adding it is a known bug of other code). Population variance.

    Args:
        x: (B, T).
        mask: (B, T).
        epsilon: added to the variance.

    Returns:
        (B, T).
    """
    _same_shape(x, mask)
    centred = x - masked_mean(x, mask)
    variance = masked_mean(centred.square(), mask)
    return torch.where(mask, centred * torch.rsqrt(variance + epsilon), 0.0)


def truncated_importance_weights(old: Tensor, sampler: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Weights that correct for a sampler whose probabilities differ from the trainer's: min(exp(old - sampler), cap).

    Args:
        old: (B, T) log-probs of the sampled tokens under the trainer's copy of the sampling policy.
        sampler: (B, T) log-probs that the sampler reported.
        mask: (B, T).
        cap: C of truncated importance sampling (about 2).

    Returns:
        (B, T), detached, 1 outside the mask.
    """
    _same_shape(old, sampler, mask)
    weights = torch.exp((old - sampler).detach()).clamp(max=cap)
    return torch.where(mask, weights, 1.0)


def policy_loss(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2, weights: Tensor | None = None
) -> PolicyLoss:
    """PPO's clipped surrogate, averaged over real tokens.

    rho = exp(new - old);  L = mean(w * max(-A rho, -A clamp(rho, 1 - clip, 1 + clip))).

    Args:
        new: (B, T) log-probs under the policy that is being trained; carries the gradient.
        old: (B, T) log-probs under the policy that sampled.
        advantages: (B, T).
        mask: (B, T).
        clip: epsilon.
        weights: (B, T) from `truncated_importance_weights`, or None.

    Returns:
        The loss and what to watch.
    """
    _same_shape(new, old, advantages, mask)
    difference = torch.where(mask, new - old, 0.0)
    ratio = torch.exp(difference)
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip, 1 + clip)
    per_token = torch.maximum(free, held)
    if weights is not None:
        _same_shape(weights, new)
        per_token = per_token * weights
    with torch.no_grad():
        clip_fraction = masked_mean((held > free).float(), mask)
        approx_kl = masked_mean(torch.expm1(difference) - difference, mask)
        ratio_mean = masked_mean(ratio, mask)
    return PolicyLoss(masked_mean(per_token, mask), clip_fraction, approx_kl, ratio_mean)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2) -> ValueLoss:
    """Max-clipped value loss, 0.5 * mean(max((V - R)^2, (clamp(V, old - clip, old + clip) - R)^2)).

    Args:
        values: (B, T), carries the gradient.
        old: (B, T) at sampling time.
        returns: (B, T).
        mask: (B, T).
        clip: furthest that a value may move and still be rewarded for it; None for no clipping.

    Returns:
        The loss and the share of tokens at which the clipped term was the larger.
    """
    _same_shape(values, old, returns, mask)
    free = (values - returns).square()
    if clip is None:
        return ValueLoss(0.5 * masked_mean(free, mask), torch.zeros((), device=values.device))
    held = (old + (values - old).clamp(-clip, clip) - returns).square()
    with torch.no_grad():
        fraction = masked_mean((held > free).float(), mask)
    return ValueLoss(0.5 * masked_mean(torch.maximum(free, held), mask), fraction)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is perfect, 0 no better than a constant.

    0 where the returns do not vary.
    """
    _same_shape(values, returns, mask)

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    total = variance(returns)
    if float(total) == 0.0:
        return torch.zeros_like(total)
    return 1 - variance(returns - values) / total


@dataclass(frozen=True, slots=True)
class KlController:
    """Adaptive KL coefficient (Ziegler et al. 2019): proportional control of log beta.

    e = clamp(KL / target - 1, -0.2, 0.2);  beta <- beta * (1 + e * episodes / horizon). Immutable: `updated` gives the
    next one. `target` None keeps the coefficient fixed.

    Attributes:
        coefficient: beta now.
        target: nats an answer to steer for, or None.
        horizon: episodes over which the coefficient may change by a factor of about 1.2.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000.0

    def updated(self, kl_per_answer: float, episodes: int) -> KlController:
        """The controller after `episodes` more episodes whose mean KL was `kl_per_answer` nats."""
        if self.target is None:
            return self
        if not math.isfinite(kl_per_answer):
            raise ValueError(f"KL is {kl_per_answer}; the policy has diverged")
        error = min(max(kl_per_answer / self.target - 1, -0.2), 0.2)
        return replace(self, coefficient=self.coefficient * (1 + error * episodes / self.horizon))


def _grouped(scores: Tensor, group: int) -> Tensor:
    assert scores.dim() == 1, f"expected (B,), got {tuple(scores.shape)}"
    assert group >= 2, "a baseline of the other answers needs two answers a prompt"
    assert len(scores) % group == 0, f"{len(scores)} answers are no whole groups of {group}"
    return scores.float().view(-1, group)


def _same_shape(first: Tensor, *others: Tensor) -> None:
    assert first.dim() == 2, f"expected (B, T), got {tuple(first.shape)}"
    for other in others:
        assert other.shape == first.shape, f"shapes differ: {tuple(first.shape)} and {tuple(other.shape)}"
