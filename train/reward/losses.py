"""Likelihoods of a comparison given two scores, as pure functions. All are negative log-likelihoods in nats.

With `d = chosen - rejected - margin`:

- Bradley-Terry: `p(win) = sigmoid(d)` (Bradley and Terry 1952; InstructGPT's reward loss).
- Davidson (1970): weights `e^{d/2} : nu : e^{-d/2}` for win, tie, loss.
- Rao and Kupper (1967): `p(win) = 1/(1 + theta e^{-d})`, `p(loss) = 1/(1 + theta e^{d})`, tie is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def pairwise_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Bradley-Terry loss, `-log sigmoid(chosen - rejected - margin)`, weighted mean.

    Args:
        chosen: scores of the preferred answers, (B,).
        rejected: scores of the others, (B,).
        margin: how much better the chosen one must be, (B,); none is 0.
        weight: what each vote counts, (B,); none is 1.

    Returns:
        A scalar.
    """
    _same_shape(chosen, rejected, margin, weight)
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return _weighted_mean(-functional.logsigmoid(difference), weight)


@dataclass(frozen=True, slots=True)
class OutcomeLogProbs:
    """Log-probabilities of the three outcomes of a comparison, each (B,); their exponentials add up to 1."""

    win: Tensor
    tie: Tensor
    loss: Tensor


def davidson(difference: Tensor, nu: float) -> OutcomeLogProbs:
    """Davidson's model of ties; `nu = 0` is Bradley-Terry.

    Args:
        difference: score of the first minus score of the second, (B,).
        nu: how readily people tie; equal answers tie with probability `nu / (2 + nu)`.
    """
    assert nu >= 0, "nu is a weight"
    log_nu = torch.log(torch.as_tensor(nu, dtype=difference.dtype, device=difference.device))
    weights = torch.stack([difference / 2, log_nu.expand_as(difference), -difference / 2])
    win, tie, loss = weights - torch.logsumexp(weights, dim=0)
    return OutcomeLogProbs(win, tie, loss)


def rao_kupper(difference: Tensor, theta: float) -> OutcomeLogProbs:
    """Rao and Kupper's model of ties; `theta = 1` is Bradley-Terry.

    Args:
        difference: score of the first minus score of the second, (B,).
        theta: threshold, at least 1; differences within `log(theta)` tend to tie.
    """
    assert theta >= 1, "theta is a threshold of at least 1"
    log_theta = torch.log(torch.as_tensor(theta, dtype=difference.dtype, device=difference.device))
    win = functional.logsigmoid(difference - log_theta)
    loss = functional.logsigmoid(-difference - log_theta)
    # p(tie) = (theta^2 - 1) p(win) p(loss): exact, and stable where 1 - win - loss cancels
    tie = torch.log(torch.expm1(2 * log_theta)) + win + loss
    return OutcomeLogProbs(win, tie, loss)


def ties_loss(chosen: Tensor, rejected: Tensor, tied: Tensor, nu: float, weight: Tensor | None = None) -> Tensor:
    """Davidson loss over a batch where some comparisons ended in a tie, weighted mean.

    Args:
        chosen: scores of the preferred (or, in a tie, first) answers, (B,).
        rejected: scores of the others, (B,).
        tied: True where the voter tied, (B,).
        nu: Davidson's tie weight, above 0 if anything is tied.
        weight: what each vote counts, (B,); none is 1.
    """
    _same_shape(chosen, rejected, tied, weight)
    outcome = davidson(chosen - rejected, nu)
    return _weighted_mean(-torch.where(tied, outcome.tie, outcome.win), weight)


def _weighted_mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum()


def _same_shape(first: Tensor, *others: Tensor | None) -> None:
    assert first.dim() == 1, f"scores are (B,), not {tuple(first.shape)}"
    assert all(other is None or other.shape == first.shape for other in others), "one entry a comparison"
