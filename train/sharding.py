"""Weights spread over processes (FSDP2), and the way back to whole tensors. Everything here is a no-op on one process.

The functions that gather are collective: every process of the team must call them, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

M = TypeVar("M", bound=nn.Module)


def shard(model: M, half: torch.dtype | None) -> M:
    """Shard a `WholeModel` block by block, the rest at the root; gradients are summed over processes, not averaged,
    because every loss is already weighted by its share of the minibatch.

    Args:
        model: holds `causal`, as transformers builds it.
        half: type to compute in; None for the weights' own (float32).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
    causal: Any = model.causal
    mesh = init_device_mesh(causal.device.type, (torch.distributed.get_world_size(),))
    for block in causal.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is one process's part of a tensor."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor (collective where it is sharded)."""
    if not is_sharded(tensor):
        return tensor
    parted: DTensor = tensor  # type: ignore[assignment]
    return parted.full_tensor()


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor in the form of `target`: this process's part of it where that is sharded. No talk between
    processes: each has the whole."""
    placed = tensor.to(target.device)
    if not is_sharded(target):
        return placed
    from torch.distributed.tensor import distribute_tensor

    parted: DTensor = target  # type: ignore[assignment]
    return distribute_tensor(placed, parted.device_mesh, parted.placements, src_data_rank=None)


def assign(target: Tensor, tensor: Tensor) -> None:
    """Overwrite a weight, sharded or not, with a whole tensor."""
    target.detach().copy_(like(tensor, target).to(target.dtype))


def replicas(causal: Any, named: Sequence[tuple[str, nn.Parameter]], device: torch.device, dtype: torch.dtype) -> Any:
    """A plain copy of a model from its (maybe sharded) weights: one weight after the other, tied ones tied again."""
    skeleton = _skeleton(causal, device)
    gathered = {key: whole(weight.detach()).to(device=device, dtype=dtype) for key, weight in named}
    skeleton.load_state_dict(gathered, strict=False, assign=True)
    skeleton.tie_weights()
    skeleton.requires_grad_(False)
    return skeleton.eval()


def _skeleton(causal: Any, device: torch.device) -> Any:
    """The architecture without weights; its buffers (rotary frequencies) are real."""
    with torch.device("meta"):
        empty = type(causal)(copy.deepcopy(causal.config))
    buffers = dict(causal.named_buffers())
    for path, module in empty.named_modules():
        for name in list(module._buffers):
            key = f"{path}.{name}" if path else name
            module._buffers[name] = buffers[key].detach().clone().to(device)
    return empty
