"""Feed-forward blocks that keep less of the way forward for the way back."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from train.kernels import gated
from train.lora import LoraLinear


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
    gate, up, down = block.gate_proj(x), block.up_proj(x), block.down_proj
    out: Tensor = down.gated(gate, up) if isinstance(down, LoraLinear) else down(gated(gate, up))
    return out


def _is_gated(block: Any) -> bool:
    weight = block.gate_proj.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 2, weight.shape[1]), generator=generator).to(weight)
    with torch.no_grad():
        return torch.allclose(block(x), _through_gate(block, x))
