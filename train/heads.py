"""Log-probabilities from hidden states without ever holding a (B, T, V) tensor, and the critic's value head.

Where a loss is known on the way forward, its gradient to the hidden states is worked out there, chunk by chunk, so that
no logits outlive their chunk and the way back is one multiplication. What the loss pulls at in a chunk's logits is
summed up first: one product with the head in place of one for each of log-probs, entropy, KL and tilt. Only for a loss
that isn't known then, or a head that is trained itself, a chunk's logits are computed a second time on the way back
(`train.full_head`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from train.full_head import scores_by_autograd
from train.kernels import at_least_float32, product
from train.reward.foresight import Tilt

EMPHASIS = 100.0
CHUNK_ROWS = 64
"""Rows of logits that exist at once."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per row, float32 (float64 of float64 states): `logprobs` (M,) of the given id, `entropy` (M,) of the
    distribution, `kl` (M,) from it to the reference's, over the whole vocabulary (0 where no reference is given);
    `foreseen` (M,), the tilt at the given id (no gradient), and `expected` (M,), its mean under the distribution
    (0 without a tilt). `loss` (), 0 where none was asked for; where one was, only it carries a gradient."""

    logprobs: Tensor
    entropy: Tensor
    kl: Tensor
    foreseen: Tensor
    expected: Tensor
    loss: Tensor


RowLoss = Callable[[slice, TokenScores], Tensor]
"""Part () that some rows of the M have in a loss, a sum over rows, from their scores."""


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    temperature: float,
    *,
    entropy_grad: bool = False,
    reference: Tensor | None = None,
    reference_weight: Tensor | None = None,
    tilt: Tilt | None = None,
    loss: RowLoss | None = None,
) -> TokenScores:
    """Log-probability of each id after its hidden state, the entropy, and the KL to a reference.

    Args:
        hidden: (M, H), final hidden states (after the last norm).
        weight: (V, H) of the language-model head; frozen, unless it wants a gradient (`train.full_head`).
        ids: (M,).
        temperature: of sampling.
        entropy_grad: let gradients flow through the entropy of the result; a `loss` may always use it.
        reference: (M, H), the reference's final hidden states; costs one more product.
        reference_weight: (V, H), its head; None for the same.
        tilt: rewards of every candidate token at the M places.
        loss: of rows, called chunk by chunk; gradients of all its terms together cost one product, without it they
            are left to autograd, which takes four.
    """
    assert hidden.shape[0] == ids.shape[0], f"{hidden.shape[0]} states for {ids.shape[0]} ids"
    assert reference is None or reference.shape == hidden.shape, "one reference state a row"
    head = weight if reference_weight is None else reference_weight
    if torch.is_grad_enabled() and (weight.requires_grad or (loss is None and hidden.requires_grad)):
        found = scores_by_autograd(
            hidden,
            weight,
            ids,
            temperature,
            rows=CHUNK_ROWS,
            entropy_grad=entropy_grad,
            reference=reference,
            reference_weight=head,
            tilt=tilt,
        )
        scores = with_loss(found, found[0].new_zeros(()))
        return scores if loss is None else replace(scores, loss=loss(slice(0, len(hidden)), scores))
    given = (hidden, weight, ids, temperature, loss, reference, head, tilt)
    *rows, total = _Scores.apply(*given)  # type: ignore[no-untyped-call]
    return with_loss(rows, total)


def with_loss(rows: Sequence[Tensor], loss: Tensor) -> TokenScores:
    """Scores from their columns in order, and a loss of them."""
    logprobs, entropy, kl, foreseen, expected = rows
    return TokenScores(logprobs, entropy, kl, foreseen, expected, loss)


class _Scores(torch.autograd.Function):
    """Scores, and a loss of them (0 for None) whose gradient to the states is worked out with the scores."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917  # torch passes them by place
        ctx,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        temperature: float,
        loss: RowLoss | None,
        reference: Tensor | None,
        reference_weight: Tensor,
        tilt: Tilt | None,
    ) -> tuple[Tensor, ...]:
        wanted = loss is not None and ctx.needs_input_grad[0]
        found: list[tuple[Tensor, ...]] = []
        pulls: list[Tensor] = []
        for start in range(0, len(hidden), CHUNK_ROWS):
            at = slice(start, min(start + CHUNK_ROWS, len(hidden)))
            rows, chosen = hidden[at], ids[at]
            logp = _logits(rows, weight, temperature)
            logp -= logp.logsumexp(-1, keepdim=True)
            p = logp.exp()
            logprobs = logp.gather(1, chosen[:, None])[:, 0]
            entropy = -torch.linalg.vecdot(p, logp)
            kl = foreseen = expected = torch.zeros_like(entropy)
            gap = gains = None
            if tilt is not None:
                gains = tilt.rows(at.start, at.stop)
                foreseen, expected = gains.gather(1, chosen[:, None])[:, 0], torch.linalg.vecdot(p, gains)
            if reference is not None:
                gap = _logits(reference[at], reference_weight, temperature)
                gap -= gap.logsumexp(-1, keepdim=True)
                gap = torch.sub(logp, gap, out=gap)  # log p - log q
                kl = torch.linalg.vecdot(p, gap)
            share, slopes = _slopes(loss, at, (logprobs, entropy, kl, foreseen, expected))
            found.append((logprobs, entropy, kl, foreseen, expected, share[None]))
            if not wanted:
                continue
            at_chosen, at_entropy, at_kl, _, at_expected = slopes
            # d / d logits: of log p(id) onehot - p, of H -p (log p + H), of KL p (gap - KL), of E p (gains - E)
            still = -at_chosen - at_entropy * entropy - at_kl * kl - at_expected * expected
            pull = (
                still[:, None].expand_as(p)
                if not bool(at_entropy.any())
                else still[:, None] - at_entropy[:, None] * logp
            )
            if gap is not None:
                pull = torch.addcmul(pull, at_kl[:, None], gap, out=gap)
            if gains is not None:
                pull = torch.addcmul(pull, at_expected[:, None], gains, out=gains)
            lean = product(p.mul_(pull).to(weight.dtype), weight.t())
            pulls.append(lean.add_(at_chosen[:, None].to(weight.dtype) * weight[chosen]).div_(temperature))
        if wanted:
            ctx.save_for_backward(torch.cat(pulls))
        *scores, shares = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.mark_non_differentiable(*scores)
        return *scores, shares.sum()

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
        (pull,) = ctx.saved_tensors
        return grads[-1].to(pull.dtype) * pull, None, None, None, None, None, None, None


def _slopes(loss: RowLoss | None, at: slice, scores: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A loss of some rows, and its slope along each of their scores."""
    if loss is None:
        return scores[0].new_zeros(()), ()
    with torch.enable_grad():
        leaves = tuple(score.detach().clone().requires_grad_() for score in scores)
        value = loss(at, with_loss(leaves, scores[0].new_zeros(())))
        slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), slopes


def _logits(states: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return at_least_float32(product(states.to(weight.dtype), weight)).div_(temperature)


@dataclass(frozen=True, slots=True)
class Regression:
    """Ridge regressions: `weights` (R, H) and `biases` (R,), float64."""

    weights: Tensor
    biases: Tensor


class ValueHead(nn.Module):
    """V = w . h / sqrt(H) + b, read in the state in which a token is chosen. Starts at zero: no opinion.

    Hidden states of a language model have a few huge features; each is divided by a running scale that the first batch
    fixes, so that one learning rate fits all bases. The last `told` columns are no hidden states but facts: they count
    `EMPHASIS` times as much, so that no ridge that tames the hidden states takes them away.
    """

    def __init__(self, width: int, told: int = 0) -> None:
        super().__init__()
        assert 0 <= told <= width, f"{told} of {width} columns"
        emphasis = torch.ones(width)
        emphasis[width - told :] = EMPHASIS
        self.register_buffer("emphasis", emphasis, persistent=False)
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.zeros(width))

    mean: Tensor
    scale: Tensor
    emphasis: Tensor

    def calibrate(self, states: Tensor) -> None:
        """Fix mean and scale from states (M, H), once; later calls change nothing."""
        if bool(self.scale.any()):
            return
        with torch.no_grad():
            self.mean.copy_(states.float().mean(0))
            self.scale.copy_(states.float().std(0).clamp(min=1e-6))

    def forward(self, states: Tensor) -> Tensor:
        """States (..., H) to values (...,), float32."""
        normal = (at_least_float32(states) - self.mean) / self.scale.clamp(min=1e-6) * self.emphasis
        values: Tensor = (normal @ self.weight) / states.shape[-1] ** 0.5 + self.bias
        return values

    def adopt(self, weight: Tensor, shift: float, scale: float) -> None:
        """Become V = (weight . h - shift) / scale for raw states h; the head must be calibrated."""
        with torch.no_grad():
            raw = weight.double() / scale
            self.weight.copy_(raw * self.scale.clamp(min=1e-6) * len(raw) ** 0.5)
            self.bias.copy_(raw @ self.mean.double() - shift / scale)

    def fit(self, states: Tensor, returns: Tensor, ridge: float) -> None:
        """Ridge regression on (M, H) states and (M,) returns: a critic in closed form."""
        self.take(self.regress(states, returns, (ridge,)), 0)

    def regress(self, states: Tensor, returns: Tensor, ridges: Sequence[float]) -> Regression:
        """Ridge regressions on (M, H) states and (M,) returns, one a strength, for one decomposition."""
        with torch.no_grad():
            x, y = self._normal(states), returns.double()
            centre, level = x.mean(0), y.mean()
            x = x - centre
            spread, axes = torch.linalg.eigh(x.T @ x)
            along = axes.T @ (x.T @ (y - level))
            weights = torch.stack([axes @ (along / (spread.clamp(min=0) + ridge)) for ridge in ridges])
            return Regression(weights, level - weights @ centre)

    def predict(self, states: Tensor, regression: Regression) -> Tensor:
        """Values (R, M) float64 of states (M, H) under each strength."""
        return regression.weights @ self._normal(states).T + regression.biases[:, None]

    def take(self, regression: Regression, which: int) -> None:
        """Make one of the regressions this head's own."""
        with torch.no_grad():
            self.weight.copy_(regression.weights[which])
            self.bias.copy_(regression.biases[which])

    def _normal(self, states: Tensor) -> Tensor:
        normal = (states.float() - self.mean) / self.scale.clamp(min=1e-6) * self.emphasis
        spread: Tensor = normal.double() / states.shape[-1] ** 0.5
        return spread
