"""Golden values by hand; properties over many scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.reward.losses import davidson, pairwise_loss, rao_kupper, ties_loss

scores = st.floats(-30, 30, allow_nan=False)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    # ln(1 + e^10), ln(1 + e^-5), ln 2
    [(0.0, 10.0, 10.0000454), (5.0, 0.0, 0.0067153), (3.0, 3.0, 0.6931472)],
)
def test_pairwise_loss_is_minus_log_sigmoid_of_the_difference(chosen: float, rejected: float, expected: float) -> None:
    assert pairwise_loss(one(chosen), one(rejected)).item() == pytest.approx(expected, abs=5e-8)


def test_a_margin_of_two_makes_a_lead_of_two_worth_ln_two() -> None:
    assert pairwise_loss(one(3.0), one(1.0), margin=one(2.0)).item() == pytest.approx(math.log(2))


def test_weights_are_a_weighted_mean() -> None:
    chosen, rejected = torch.tensor([0.0, 5.0]), torch.tensor([10.0, 0.0])
    loss = pairwise_loss(chosen, rejected, weight=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((10.0000454 + 3 * 0.0067153) / 4, abs=1e-6)


def test_equal_answers_tie_with_the_textbook_probabilities() -> None:
    # Davidson: nu / (2 + nu) = 0.5 / 2.5; Rao-Kupper: (theta - 1) / (theta + 1) = 1/3 for theta = 2
    assert davidson(one(0.0), 0.5).tie.exp().item() == pytest.approx(0.2)
    assert rao_kupper(one(0.0), 2.0).tie.exp().item() == pytest.approx(1 / 3)


@given(scores, st.floats(0.001, 20))
def test_outcomes_add_up_to_one_and_swap_with_the_sides(difference: float, nu: float) -> None:
    for outcome, swapped in (
        (davidson(one(difference), nu), davidson(one(-difference), nu)),
        (rao_kupper(one(difference), 1 + nu), rao_kupper(one(-difference), 1 + nu)),
    ):
        total = outcome.win.exp() + outcome.tie.exp() + outcome.loss.exp()
        assert total.item() == pytest.approx(1.0, abs=1e-9)
        assert outcome.win.item() == pytest.approx(swapped.loss.item())
        assert outcome.tie.item() == pytest.approx(swapped.tie.item())


@given(scores)
def test_without_ties_both_models_are_bradley_terry(difference: float) -> None:
    bradley_terry = pairwise_loss(one(difference), one(0.0)).item()
    assert -davidson(one(difference), 0.0).win.item() == pytest.approx(bradley_terry, abs=1e-9)
    assert -rao_kupper(one(difference), 1.0).win.item() == pytest.approx(bradley_terry, abs=1e-9)


def test_ties_loss_takes_each_votes_own_outcome() -> None:
    chosen, rejected = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    loss = ties_loss(chosen, rejected, torch.tensor([True, False]), nu=2.0)
    # equal answers, nu = 2: tie 2/4, win 1/4
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
