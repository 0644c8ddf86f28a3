"""The frozen layers' matrix product, by the quicker of the libraries that PyTorch carries; blocks that keep less.

On AMD processors oneDNN's float32 product is 5 to 60% faster than MKL's (measured on a Zen 4; most for the small
batches of decoding), so it is taken there. The choice depends on the processor's make alone: equal runs stay equal to
the bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MethodType
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


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all of one shape; for the way back it keeps these two, not silu(gate) beside them."""
    out: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def spare(model: nn.Module) -> int:
    """Let the gated feed-forward blocks of a transformers model keep less for the way back.

    A block is changed where it has the parts of Llama's and its own answer to a random input is what ours would be.

    Returns:
        How many were changed.
    """
    changed = 0
    for block in model.modules():
        parts = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
        if all(isinstance(part, nn.Module) for part in parts) and _is_gated(block):
            block.forward = MethodType(_through_gate, block)
            changed += 1
    return changed


def _through_gate(block: Any, x: Tensor) -> Tensor:
    out: Tensor = block.down_proj(gated(block.gate_proj(x), block.up_proj(x)))
    return out


def _is_gated(block: Any) -> bool:
    weight = block.gate_proj.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 2, weight.shape[1]), generator=generator).to(weight)
    with torch.no_grad():
        return torch.allclose(block(x), _through_gate(block, x))


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
        out = product(x, weight, bias)
        low = product(x, a.to(x.dtype)).mul_(scale)
        out.addmm_(low, b.t().to(x.dtype))
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(x, low, a, b)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, low, a, b = ctx.saved_tensors
        grad = grad.contiguous()
        pull = product(grad, b.t().to(grad.dtype)).mul_(ctx.scale)  # d loss / d (x A^T)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = product(grad, ctx.weight.t()).addmm_(pull, a.to(grad.dtype))
        to_a = product(pull.t(), x.t()).to(a.dtype)
        to_b = product(low.t(), grad.t()).t().to(b.dtype)  # of the two ways round the quicker
        return to_x, None, None, to_a, to_b, None


@cache
def _onednn_is_faster() -> bool:
    """Whether this is an AMD processor and PyTorch has the operators."""
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return False
    there = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return "AuthenticAMD" in maker and there
