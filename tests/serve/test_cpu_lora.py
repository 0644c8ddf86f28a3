"""The CPU's LoRA products against a loop over tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from serve.engines import vllm_cpu_lora as lora  # noqa: E402  # after the check for torch


@pytest.mark.parametrize("slots", [[0, 0, 0], [-1, -1], [1, -1, 1, 0, -1, 0], [2, 2, -1, 1, 1]])
def test_each_row_gets_its_own_adapter_and_the_base_gets_none(slots: list[int]) -> None:
    torch.manual_seed(0)
    a = [torch.randn(3, 1, 4, 6) for _ in range(2)]
    b = [torch.randn(3, 1, size, 4) for size in (5, 7)]
    x, y = torch.randn(len(slots), 6), torch.randn(len(slots), 12)
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row, :5] += b[0][slot, 0] @ (a[0][slot, 0] @ x[row])
            expected[row, 5:] += b[1][slot, 0] @ (a[1][slot, 0] @ x[row])
    wrapper = SimpleNamespace(token_groups=lora.group_rows(torch.tensor(slots)))
    lora.add_lora_linear(wrapper, y, x, tuple(a), tuple(b), 1.0, (5, 7))
    torch.testing.assert_close(y, expected)


def test_rows_that_lie_together_become_a_slice() -> None:
    assert lora.group_rows(torch.tensor([-1, 2, 2, 0])) == [(2, slice(1, 3)), (0, slice(3, 4))]


def test_a_head_that_no_adapter_touches_is_left_alone_even_when_rows_do_not_match() -> None:
    a, b = torch.randn(2, 1, 4, 6), torch.zeros(2, 1, 9, 4)
    wrapper = SimpleNamespace(sampler_groups=lora.group_rows(torch.tensor([0, 1])))
    y = torch.ones(5, 9)
    lora.add_lora_logits(wrapper, y, torch.randn(5, 6), a, b, 1.0)
    assert (y == 1).all()


def test_a_head_is_looked_at_again_after_it_was_written() -> None:
    a, b, y = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 4, 2), torch.zeros(1, 4)
    wrapper = SimpleNamespace(sampler_groups=lora.group_rows(torch.tensor([0])))
    lora.add_lora_logits(wrapper, y, torch.ones(1, 3), a, b, 1.0)
    b[0] = 1.0
    lora.add_lora_logits(wrapper, y, torch.ones(1, 3), a, b, 1.0)
    torch.testing.assert_close(y, torch.full((1, 4), 6.0))
