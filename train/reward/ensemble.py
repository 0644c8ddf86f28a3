"""Several heads on resampled conversations: how far they differ about an answer says how little is known of it.

A bootstrap over conversations, so that votes of one conversation come and go together; each member keeps the
structures, shares and scales of the whole fit (`mix.fit_members`). The deviation of an answer's scores,

    std(x) = sqrt(mean_k (s_k(x) - mean(x))^2),

splits exactly over its tokens: it is homogeneous of degree one in them, hence (Euler) token t's share is
`mean_k (s_k - mean) (r_kt - mean_t) / std`. So `mean - pessimism * std` (Coste et al. 2023, 2310.02743: uncertainty-
weighted optimisation) is still a sum of token rewards.

On disk (`reward.safetensors`): `member/BLOCK`, (K, k) float32: each member's weights less the mean of all, in units of
the head's score. An answer's disagreement is the deviation over K of those times its pooled features less `mean/BLOCK`,
added up over blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from train.reward.probe import Array, Rows


def bootstrap(groups: Rows, members: int, seed: int) -> Array:
    """How often each row counts for each member, (members, n): groups drawn with replacement, as many as there are.

    Args:
        groups: label of each row, (n,).
        members: heads.
        seed: of the draws.
    """
    labels, place = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=members)
    return np.asarray(counts[:, place], dtype=np.float64)


def deviation(scores: Array) -> Array:
    """Standard deviation over the members, (n,), of deviations from their mean (members, n)."""
    return np.asarray(np.sqrt((scores**2).mean(axis=0)))


def disagreement(scores: Array, first: Rows, second: Rows) -> Array:
    """How little is known of who wins each pair: deviation of the score difference, (pairs,).

    Pairs with the largest are worth asking people about.

    Args:
        scores: the members' deviations from their mean for each answer, (members, answers).
        first, second: rows of answers, (pairs,).
    """
    return deviation(scores[:, first] - scores[:, second])


def token_deviation(rewards: Tensor) -> Tensor:
    """Each token's share of its answer's deviation, (B, L); they add up to it exactly.

    Args:
        rewards: the members' token rewards less their mean, (B, L, K).
    """
    assert rewards.dim() == 3, f"token rewards of members are (B, L, K), not {tuple(rewards.shape)}"
    total = rewards.sum(dim=1, keepdim=True)
    spread = total.square().mean(dim=2, keepdim=True).sqrt().clamp(min=1e-9)
    return torch.mean(rewards * (total / spread), dim=2)
