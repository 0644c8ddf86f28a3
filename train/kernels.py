"""The frozen layers' matrix product, by the quicker of the libraries that PyTorch carries.

On AMD processors oneDNN's float32 product is 5 to 60% faster than MKL's (measured on a Zen 4; most for the small
batches of decoding), so it is taken there. The choice depends on the processor's make alone: equal runs stay equal to
the bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAID_OUT_FOR = 16
"""Rows that `laid_out` tells oneDNN to expect; what is laid out for 16 is as good for 1 or 2,048."""


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision made single; double stays double."""
    return x if x.dtype == torch.float64 else x.float()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, in) W^T + b, (N, out), by the quicker library; no gradient. Either may be a transposed view."""
    if _onednn_is_faster() and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return nn.functional.linear(x, weight, bias)


def laid_out(weight: Tensor) -> Tensor:
    """The weight (out, in) for many products with few rows, in the layout that the quicker library works in.

    Read by `product` and `frozen_linear` alone. oneDNN otherwise copies a weight into that layout at every product,
    which at 16 rows is a third of the time. The same bits come out, but for a single row.
    """
    if _onednn_is_faster() and weight.device.type == "cpu" and weight.dtype == torch.float32:
        out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), LAID_OUT_FOR)
        return out
    return weight


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) W^T + b, (..., out); gradients flow to x alone."""
    out: Tensor = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def adapted_linear(  # noqa: PLR0917 - a layer's weights, in the order of the formula
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """x (..., in) W^T + b + scale (x A^T) B^T, (..., out); gradients flow to x, A (r, in) and B (out, r).

    One node of the graph for the whole layer: the low-rank parts are added where the frozen products lie, with no
    tensor of their own for each term. At rank 16 their own arithmetic is a tenth of the layer's; taken apart into
    transposes, products and sums they took a third of its time.
    """
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _AdaptedLinear.apply(rows, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def adapted_gated(  # noqa: PLR0917 - a layer's weights, in the order of the formula
    gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """`adapted_linear` of silu(gate) * up, which is not kept for the way back but worked out again."""
    into = (gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1]))
    out: Tensor = _AdaptedGated.apply(*into, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return out.view(*gate.shape[:-1], weight.shape[0])


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all of one shape; for the way back it keeps these two, not silu(gate) beside them."""
    out: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), nn.functional.silu(gate).mul_(grad)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return product(grad.contiguous(), ctx.weight.t()), None, None


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by place
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        out, low = _adapted(x, weight, bias, a, b, scale)
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(x, low, a, b)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, low, a, b = ctx.saved_tensors
        back = _Back(grad.contiguous(), ctx.weight, low, a, b, ctx.scale)
        to_x = back.to_x() if ctx.needs_input_grad[0] else None
        return to_x, None, None, back.to_a(x), back.to_b(), None


class _AdaptedGated(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by place
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        out, low = _adapted(nn.functional.silu(gate).mul_(up), weight, bias, a, b, scale)
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(gate, up, low, a, b)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up, low, a, b = ctx.saved_tensors
        back = _Back(grad.contiguous(), ctx.weight, low, a, b, ctx.scale)
        opened, to_x = nn.functional.silu(gate), back.to_x()
        to_a = back.to_a(opened * up)
        to_up = opened.mul_(to_x)
        to_gate = torch.ops.aten.silu_backward(to_x.mul_(up), gate)
        return to_gate, to_up, None, None, to_a, back.to_b(), None


def _adapted(  # noqa: PLR0917 - as above
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The layer's result, and scale x A^T (N, r)."""
    out = product(x, weight, bias)
    low = product(x, a.to(x.dtype)).mul_(scale)
    return out.addmm_(low, b.t().to(x.dtype)), low


class _Back:
    """Gradients of an adapted layer, from that of its result (N, out)."""

    def __init__(self, grad: Tensor, weight: Tensor, low: Tensor, a: Tensor, b: Tensor, scale: float) -> None:  # noqa: PLR0917
        self._grad, self._weight, self._low, self._a, self._b = grad, weight, low, a, b
        self._pull = product(grad, b.t().to(grad.dtype)).mul_(scale)  # d loss / d (x A^T)

    def to_x(self) -> Tensor:
        """(N, in)."""
        return product(self._grad, self._weight.t()).addmm_(self._pull, self._a.to(self._grad.dtype))

    def to_a(self, x: Tensor) -> Tensor:
        """(r, in), of the layer's x (N, in)."""
        return product(self._pull.t(), x.t()).to(self._a.dtype)

    def to_b(self) -> Tensor:
        """(out, r); of the two ways round the quicker."""
        return product(self._low.t(), self._grad.t()).t().to(self._b.dtype)


@cache
def _onednn_is_faster() -> bool:
    """Whether this is an AMD processor and PyTorch has the operators."""
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return False
    there = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return "AuthenticAMD" in maker and there
