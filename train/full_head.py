"""Log-probabilities from hidden states where the language-model head itself is trained.

The gradient to the head depends on the loss, so it can't be worked out on the way forward as `train.heads` does it for
a frozen one; each chunk's logits are computed once more on the way back instead, and never more than a chunk of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.reward.foresight import Tilt


def trainable_scores(
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
    """As `train.heads.score_tokens`, with a gradient to `weight`.

    Args:
        hidden: (M, H).
        weight: (V, H), trained.
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
    logp = (nn.functional.linear(hidden, weight).float() / temperature).log_softmax(-1)
    p = logp.exp()
    chosen = logp.gather(1, ids[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(logp.exp() * logp).sum(-1)
    kl = foreseen = expected = torch.zeros_like(chosen)
    if reference is not None:
        with torch.no_grad():
            other = nn.functional.linear(reference.to(reference_weight.dtype), reference_weight).float() / temperature
            logq = other.log_softmax(-1)
        kl = (p * (logp - logq)).sum(-1)
    if rewards is not None:
        with torch.no_grad():
            gains = rewards()
        foreseen, expected = gains.gather(1, ids[:, None])[:, 0], (p * gains).sum(-1)
    return chosen, entropy, kl, foreseen, expected
