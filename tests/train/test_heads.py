"""The critic's value head."""

from __future__ import annotations

import torch

from train.critic import cross_fitted_values
from train.heads import ValueHead


def states_and_returns(noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 6, 8, generator=generator) * torch.tensor([1000.0] + [1.0] * 7) + 5
    direction = torch.tensor([0.002] + [1.0] * 7)
    returns = states @ direction + noise * torch.randn(40, 6, generator=generator)
    return states, returns, torch.ones(40, 6, dtype=torch.bool)


def test_a_fresh_head_has_no_opinion() -> None:
    head = ValueHead(4)
    head.calibrate(torch.randn(9, 4))
    assert head(torch.randn(2, 3, 4)).abs().sum() == 0


def test_calibration_happens_once() -> None:
    head = ValueHead(2)
    head.calibrate(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
    before = head.scale.clone(), head.mean.clone()
    head.calibrate(torch.randn(5, 2))
    assert torch.equal(head.scale, before[0])
    assert head.mean.tolist() == [1.0, 20.0]


def test_the_closed_form_fit_finds_a_linear_value_despite_a_huge_feature() -> None:
    states, returns, mask = states_and_returns(noise=0.0)
    head = ValueHead(8)
    head.calibrate(states[mask])
    head.fit(states[mask], returns[mask], ridge=1e-6)
    assert torch.allclose(head(states), returns, atol=1e-2)


def test_cross_fitted_values_have_not_seen_their_own_returns() -> None:
    states, returns, mask = states_and_returns(noise=0.0)
    head = ValueHead(8)
    head.calibrate(states[mask])
    before = cross_fitted_values(head, states, returns, mask)
    changed = returns.clone()
    changed[3] += 100.0
    after = cross_fitted_values(head, states, changed, mask)
    assert torch.equal(before[3], after[3])
    assert not torch.equal(before[4], after[4])


def test_a_critic_that_can_know_nothing_predicts_a_constant() -> None:
    generator = torch.Generator().manual_seed(4)
    states, mask = torch.randn(24, 20, 40, generator=generator), torch.ones(24, 20, dtype=torch.bool)
    returns = torch.randn(24, 20, generator=generator)  # nothing to do with the states
    head = ValueHead(40)
    head.calibrate(states[mask])
    values = cross_fitted_values(head, states, returns, mask)
    assert float(values.var()) < 0.02  # a fixed ridge of 1 gives 0.10 of the returns' own 1.0
