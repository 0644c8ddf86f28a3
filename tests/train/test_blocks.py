"""Feed-forward blocks that keep less say what they said before."""

from __future__ import annotations

import torch

from tests.train.conftest import Turn
from train.base import Base, policy_pass
from train.blocks import spare
from train.config import LoraSettings
from train.kernels import gated
from train.lora import AdapterSet


class _Block(torch.nn.Module):
    """A feed-forward block with Llama's parts."""

    def __init__(self, act: torch.nn.Module, *, gate_last: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(*shape) for shape in ((3, 5), (3, 5), (5, 3)))
        self.act_fn = act
        self.gate_last = gate_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (self.up_proj, self.gate_proj) if self.gate_last else (self.gate_proj, self.up_proj)
        out: torch.Tensor = self.down_proj(self.act_fn(first(x)) * second(x))
        return out


def test_blocks_that_keep_less_say_the_same_and_others_are_left_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleList(
        [
            _Block(torch.nn.SiLU()),
            _Block(torch.nn.GELU()),
            _Block(torch.nn.SiLU(), gate_last=True),
            torch.nn.Linear(3, 3),
        ]
    )
    x = torch.randn(2, 4, 3)
    before = [block(x) for block in model]
    assert spare(model) == 1
    for block, expected in zip(model, before, strict=True):
        assert torch.allclose(block(x), expected, atol=1e-6)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated(torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True))
    assert len(kept) == 2, "what enters, and nothing that can be worked out again"


def test_an_adapted_block_that_keeps_less_has_the_same_gradients() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(_Block(torch.nn.SiLU()))
    adapters = AdapterSet(model, LoraSettings(rank=2, targets=("gate_proj", "down_proj")))
    adapters.add("policy", 0)
    for layer in adapters.layers.values():
        torch.nn.init.normal_(layer.lora_b["policy"])
    x, pulls = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    wanted = [x, *adapters.parameters("policy")]
    with adapters.using("policy"):
        expected = torch.autograd.grad(model(x), wanted, pulls)
        assert spare(model) == 1
        got = torch.autograd.grad(model(x), wanted, pulls)
    for mine, truth in zip(got, expected, strict=True):
        assert torch.allclose(mine, truth, atol=1e-5)


def test_a_pass_of_the_policy_keeps_gate_and_up_of_each_block_and_no_third(base: Base, turns: list[Turn]) -> None:
    wide = base._model.config.intermediate_size
    kept: set[int] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() > 1 and tensor.shape[-1] == wide and not isinstance(tensor, torch.nn.Parameter):
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = policy_pass(base, turns, loss=lambda _at, scores: scores.logprobs.sum())
    assert found.loss.requires_grad
    assert len(kept) == 2 * base.depth
