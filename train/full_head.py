"""Log-probabilities from hidden states where autograd finds the gradient: the head itself is trained, or the loss isn't
known on the way forward, so that `train.heads` can't work it out there.

Each chunk's logits are computed once more on the way back, and never more than a chunk of them exists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.kernels import at_least_float32, frozen_linear
from train.reward.foresight import Tilt


def scores_by_autograd(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    temperature: float,
    *,
    rows: int,
    entropy_grad: bool,
    reference: Tensor | None,
    reference_weight: Tensor,
    tilt: Tilt | None = None,
) -> tuple[Tensor, ...]:
    """As `train.heads.score_tokens`, with a gradient to `hidden`, and to `weight` if it wants one.

    Args:
        hidden: (M, H).
        weight: (V, H).
        ids: (M,).
        temperature: of sampling.
        rows: of a chunk.
        entropy_grad: let gradients flow through the entropy.
        reference: (M, H), the reference's hidden states.
        reference_weight: (V, H), the reference's head.
        tilt: rewards of every candidate token at the M places.

    Returns:
        Log-probs, entropies, KLs, foreseen rewards and their expectations, (M,) each, float32.
    """
    parts = []
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        other = None if reference is None else reference[chunk]
        parts.append(
            checkpoint(
                _chunk,
                hidden[chunk],
                weight,
                ids[chunk],
                temperature,
                entropy_grad,
                other,
                reference_weight,
                None if tilt is None else partial(tilt.rows, start, min(start + rows, len(hidden))),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _chunk(  # noqa: PLR0917 - torch's checkpoint passes them by place
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    temperature: float,
    entropy_grad: bool,
    reference: Tensor | None,
    reference_weight: Tensor,
    rewards: Callable[[], Tensor] | None,
) -> tuple[Tensor, ...]:
    logp = _logp(hidden, weight, temperature)
    p = logp.exp()
    chosen = logp.gather(1, ids[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(logp.exp() * logp).sum(-1)
    kl = foreseen = expected = torch.zeros_like(chosen)
    if reference is not None:
        with torch.no_grad():
            logq = _logp(reference, reference_weight, temperature)
        kl = (p * (logp - logq)).sum(-1)
    if rewards is not None:
        with torch.no_grad():
            gains = rewards()
        foreseen, expected = gains.gather(1, ids[:, None])[:, 0], (p * gains).sum(-1)
    return chosen, entropy, kl, foreseen, expected


def _logp(states: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """As `train.heads` computes it, to the bit."""
    linear = nn.functional.linear if weight.requires_grad else frozen_linear
    scaled = at_least_float32(linear(states.to(weight.dtype), weight)) / temperature
    return scaled - scaled.logsumexp(-1, keepdim=True)
