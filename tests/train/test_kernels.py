"""The products: the same numbers and gradients as PyTorch's own, whichever library computes it."""

from __future__ import annotations

import pytest
import torch

from train import kernels


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
def test_product_and_gradient_equal_the_plain_layer(monkeypatch: pytest.MonkeyPatch, bias: bool, onednn: bool) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: onednn)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 12, generator=generator, requires_grad=True)
    weight, shift = torch.randn(7, 12, generator=generator), torch.randn(7, generator=generator) if bias else None
    up = torch.randn(2, 5, 7, generator=generator)
    got = kernels.frozen_linear(x, weight, shift)
    expected = torch.einsum("bti,oi->bto", x, weight) + (0 if shift is None else shift)
    assert torch.allclose(got, expected, atol=1e-5)
    (grad,) = torch.autograd.grad(got, x, up)
    assert torch.allclose(grad, torch.einsum("bto,oi->bti", up, weight), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 16, 300])
@pytest.mark.parametrize("onednn", [False, True])
def test_a_weight_that_was_laid_out_gives_the_same_products(
    monkeypatch: pytest.MonkeyPatch, rows: int, onednn: bool
) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: onednn)
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(rows, 40, generator=generator), torch.randn(7, 40, generator=generator)
    with torch.no_grad():
        got = kernels.frozen_linear(x, kernels.laid_out(weight), None)
    assert torch.allclose(got.double(), torch.einsum("ni,oi->no", x.double(), weight.double()), atol=1e-5)
    assert kernels.laid_out(weight.bfloat16()).dtype == torch.bfloat16, "half precision stays as it is"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
def test_an_adapted_layer_and_its_gradients_equal_the_formula(
    monkeypatch: pytest.MonkeyPatch, bias: bool, onednn: bool
) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: onednn)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, a, b = (drawn(*shape).requires_grad_() for shape in ((2, 5, 12), (3, 12), (7, 3)))
    weight, shift, up = drawn(7, 12), drawn(7) if bias else None, drawn(2, 5, 7)
    got = kernels.adapted_linear(x, weight, shift, a, b, 0.5)
    merged = weight + 0.5 * torch.einsum("or,ri->oi", b, a)
    expected = torch.einsum("bti,oi->bto", x, merged) + (0 if shift is None else shift)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, (x, a, b), up), torch.autograd.grad(expected, (x, a, b), up))


def test_an_adapted_layers_gradients_pass_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    x, a, b, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (2, 6), (5, 2), (5, 6))
    )
    trained = tuple(tensor.requires_grad_() for tensor in (x, a, b))
    assert torch.autograd.gradcheck(lambda x, a, b: kernels.adapted_linear(x, weight, None, a, b, 1.5), trained)


def test_where_nothing_before_a_layer_learns_only_its_adapter_gets_a_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    a, b = torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator)
    kernels.adapted_linear(x, weight, None, a.requires_grad_(), b.requires_grad_(), 1.5).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(b.grad, (1.5 * x @ a.T).sum(0).expand(5, 2).detach())


@pytest.mark.parametrize("onednn", [False, True])
def test_an_adapted_layer_behind_a_gate_equals_the_two_apart(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: onednn)
    generator = torch.Generator().manual_seed(4)
    gate, up, a, b = (
        torch.randn(*shape, generator=generator).requires_grad_() for shape in ((2, 5, 12), (2, 5, 12), (3, 12), (7, 3))
    )
    weight, shift = torch.randn(7, 12, generator=generator), torch.randn(7, generator=generator)
    pulls = torch.randn(2, 5, 7, generator=generator)
    x = gate / (1 + torch.exp(-gate)) * up
    expected = torch.einsum("bti,oi->bto", x, weight + 0.5 * b @ a) + shift
    got = kernels.adapted_gated(gate, up, weight, shift, a, b, 0.5)
    assert torch.allclose(got, expected, atol=1e-4)
    for mine, truth in zip(
        torch.autograd.grad(got, (gate, up, a, b), pulls),
        torch.autograd.grad(expected, (gate, up, a, b), pulls),
        strict=True,
    ):
        assert torch.allclose(mine, truth, atol=1e-4)


def test_the_gate_and_its_gradients_equal_the_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    gate, up = (torch.randn(4, 6, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.allclose(kernels.gated(gate, up), gate / (1 + torch.exp(-gate)) * up, atol=1e-12)
    assert torch.autograd.gradcheck(kernels.gated, (gate, up))
