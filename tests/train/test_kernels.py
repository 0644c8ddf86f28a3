"""The frozen product: the same numbers and gradients as PyTorch's own, whichever library computes it."""

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
