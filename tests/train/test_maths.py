"""PPO's mathematics against hand-worked numbers, slow loops, properties and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train import maths

SEEDS = st.integers(min_value=0, max_value=10_000)


def batch(seed: int, rows: int = 3, length: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Four random (B, T) tensors and a mask whose rows have 1 to T real tokens at the front."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(rows, length, generator=generator, dtype=dtype) for _ in range(4)]
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return (*tensors, torch.arange(length)[None] < lengths)


def padded(x: Tensor, by: int, value: float) -> Tensor:
    return torch.cat([x, torch.full((x.shape[0], by), value, dtype=x.dtype)], 1)


def test_token_logprobs_of_a_hand_worked_row() -> None:
    logits = torch.tensor([[[math.log(1.0), math.log(3.0)]]])
    assert maths.token_logprobs(logits, torch.tensor([[1]])).item() == pytest.approx(math.log(0.75), abs=1e-6)
    # at temperature 0.5 the weights are 1 and 9
    assert maths.token_logprobs(logits, torch.tensor([[1]]), 0.5).item() == pytest.approx(math.log(0.9), abs=1e-6)


def test_entropy_of_a_fair_and_of_a_loaded_coin() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])
    expected = [math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    assert maths.entropy(logits)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_kl_estimators_of_a_hand_worked_token() -> None:
    # policy 0.5, reference 0.25: r = ln 0.5
    policy, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert maths.kl(policy, reference, "k1").item() == pytest.approx(math.log(2), abs=1e-6)
    assert maths.kl(policy, reference, "k2").item() == pytest.approx(math.log(2) ** 2 / 2, abs=1e-6)
    assert maths.kl(policy, reference, "k3").item() == pytest.approx(0.5 - 1 + math.log(2), abs=1e-6)


@given(SEEDS)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    q = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    true = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    for estimator in ("k1", "k3"):
        expected = (p.exp() * maths.kl(p[None], q[None], estimator)[0]).sum().item()
        assert expected == pytest.approx(true, abs=1e-9)
    assert (maths.kl(p[None], q[None], "k3") >= -1e-12).all()


def test_shaped_rewards_pay_for_every_nat_and_nothing_outside_the_answer() -> None:
    rewards, kl = torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[1.0, -0.5, 9.0]])
    shaped = maths.kl_shaped_rewards(rewards, kl, 0.1, torch.tensor([[True, True, False]]))
    assert shaped[0].tolist() == pytest.approx([-0.1, 2.05, 0.0])


def test_a_score_is_put_at_the_last_real_token() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert maths.at_last_token(torch.tensor([2.0, 3.0]), mask).tolist() == [[0, 2, 0], [0, 0, 3]]


def test_an_empty_answer_has_no_last_token() -> None:
    with pytest.raises(AssertionError, match="without a token"):
        maths.at_last_token(torch.tensor([1.0]), torch.tensor([[False]]))


def test_gae_of_a_hand_worked_answer() -> None:
    # values 1, 2; reward 5 at the end; gamma 1, lambda 0.5
    # delta_1 = 5 - 2 = 3; delta_0 = 0 + 2 - 1 = 1; A_0 = 1 + 0.5 * 3 = 2.5
    got = maths.gae(torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), 1, 0.5)
    assert got.advantages[0].tolist() == pytest.approx([2.5, 3.0])
    assert got.returns[0].tolist() == pytest.approx([3.5, 5.0])


@given(SEEDS, st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_gae_is_the_double_sum_of_the_paper(seed: int, gamma: float, lam: float) -> None:
    rewards, values, _, _, mask = batch(seed)
    got = maths.gae(rewards, values, mask, gamma, lam).advantages
    for b in range(mask.shape[0]):
        n = int(mask[b].sum())
        for t in range(mask.shape[1]):
            expected = 0.0
            for s in range(t, n):
                after = float(values[b, s + 1]) if s + 1 < n else 0.0
                expected += (gamma * lam) ** (s - t) * (float(rewards[b, s]) + gamma * after - float(values[b, s]))
            assert float(got[b, t]) == pytest.approx(expected if t < n else 0.0, abs=1e-5)


@given(SEEDS)
def test_with_lambda_one_the_return_is_the_sum_of_what_follows(seed: int) -> None:
    rewards, values, _, _, mask = batch(seed)
    returns = maths.gae(rewards, values, mask, 1.0, 1.0).returns
    for b in range(mask.shape[0]):
        n = int(mask[b].sum())
        assert float(returns[b, 0]) == pytest.approx(float(rewards[b, :n].sum()), abs=1e-5)


@given(SEEDS)
def test_whitened_real_tokens_have_mean_zero_and_variance_one(seed: int) -> None:
    x, _, _, _, mask = batch(seed, rows=4)
    x, mask = 3 * x + 7, mask | (torch.arange(6)[None] < 2)
    white = maths.masked_whiten(x, mask)
    real = white[mask].tolist()
    assert sum(real) / len(real) == pytest.approx(0, abs=1e-6)
    assert sum(v * v for v in real) / len(real) == pytest.approx(1, abs=1e-4)
    assert white[~mask].abs().sum() == 0


def test_masked_mean_of_nothing_is_zero() -> None:
    assert maths.masked_mean(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_policy_loss_of_hand_worked_tokens() -> None:
    # ratios 1.5 and 0.5, advantages 1 and -1, clip 0.2: terms -1.2 (clipped) and 0.8 (clipped)
    new = torch.log(torch.tensor([[1.5, 0.5]]))
    got = maths.policy_loss(new, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert got.loss.item() == pytest.approx((-1.2 + 0.8) / 2, abs=1e-6)
    assert got.clip_fraction.item() == 1.0
    assert got.ratio_mean.item() == pytest.approx(1.0)
    # k3 of the two: r - 1 - ln r
    assert got.approx_kl.item() == pytest.approx((0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 2, abs=1e-6)


@given(SEEDS, st.floats(0.05, 0.5))
def test_policy_loss_is_the_mean_of_the_papers_minimum(seed: int, clip: float) -> None:
    new, old, advantages, weights, mask = batch(seed)
    weights = weights.abs()
    expected, n = 0.0, 0
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                rho, a = math.exp(float(new[b, t]) - float(old[b, t])), float(advantages[b, t])
                expected -= float(weights[b, t]) * min(rho * a, min(max(rho, 1 - clip), 1 + clip) * a)
                n += 1
    got = maths.policy_loss(new, old, advantages, mask, clip=clip, weights=weights)
    assert got.loss.item() == pytest.approx(expected / n, rel=1e-9)


@given(SEEDS)
def test_padding_never_changes_a_loss(seed: int) -> None:
    new, old, advantages, returns, mask = batch(seed)
    plain = maths.policy_loss(new, old, advantages, mask).loss
    wide = maths.policy_loss(padded(new, 3, 9), padded(old, 3, -9), padded(advantages, 3, 5), padded(mask, 3, 0)).loss
    assert wide.item() == pytest.approx(plain.item(), rel=1e-12)
    plain = maths.value_loss(new, old, returns, mask).loss
    wide = maths.value_loss(padded(new, 3, 9), padded(old, 3, -9), padded(returns, 3, 5), padded(mask, 3, 0)).loss
    assert wide.item() == pytest.approx(plain.item(), rel=1e-12)
    plain_gae = maths.gae(new, old, mask).advantages
    wide_gae = maths.gae(padded(new, 3, 9), padded(old, 3, 9), padded(mask, 3, 0)).advantages
    assert torch.equal(wide_gae[:, :-3], plain_gae)


def test_far_away_padding_does_not_make_a_gradient_nan() -> None:
    new = torch.tensor([[0.0, 500.0]], requires_grad=True)
    loss = maths.policy_loss(new, torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[True, False]])).loss
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[-1.0, 0.0]]


def test_value_loss_of_a_hand_worked_token_takes_the_larger_error() -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    # V moved from 0 to 1 towards R = 1: clipped to 0.2, error 0.8 stays
    got = maths.value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), one, 0.2)
    assert got.loss.item() == pytest.approx(0.5 * 0.64)
    assert got.clip_fraction.item() == 1.0
    assert maths.value_loss(torch.tensor([[3.0]]), torch.zeros(1, 1), torch.ones(1, 1), one, None).loss.item() == 2.0


def test_truncated_weights_are_capped_and_one_outside() -> None:
    old = torch.log(torch.tensor([[0.5, 0.9, 0.9]]))
    sampler = torch.log(torch.tensor([[1.0, 0.1, 0.1]]))
    got = maths.truncated_importance_weights(old, sampler, torch.tensor([[True, True, False]]), 2.0)
    assert got[0].tolist() == pytest.approx([0.5, 2.0, 1.0])


def test_explained_variance_of_perfect_constant_and_flat() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    returns = torch.tensor([[1.0, 2.0, 3.0]])
    assert maths.explained_variance(returns, returns, mask).item() == 1.0
    assert maths.explained_variance(torch.zeros(1, 3), returns, mask).item() == pytest.approx(0.0)
    assert maths.explained_variance(returns, torch.ones(1, 3), mask).item() == 0.0


def test_kl_controller_follows_the_published_rule() -> None:
    controller = maths.KlController(0.15, target=6.0, horizon=10_000)
    # far above the target the error is clipped to 0.2: 0.15 * (1 + 0.2 * 500 / 10000)
    assert controller.updated(60.0, 500).coefficient == pytest.approx(0.15 * 1.01)
    assert controller.updated(6.6, 1000).coefficient == pytest.approx(0.15 * 1.01)
    assert controller.updated(0.0, 500).coefficient == pytest.approx(0.15 * 0.99)
    assert maths.KlController(0.03).updated(60.0, 500).coefficient == 0.03
    with pytest.raises(ValueError, match="diverged"):
        controller.updated(math.nan, 1)


def finite_difference(f: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    grad = torch.zeros_like(x)
    for index in range(x.numel()):
        up, down = x.clone().view(-1), x.clone().view(-1)
        up[index] += step
        down[index] -= step
        grad.view(-1)[index] = (f(up.view_as(x)) - f(down.view_as(x))) / (2 * step)
    return grad


@pytest.mark.parametrize("seed", range(5))
def test_gradients_agree_with_finite_differences(seed: int) -> None:
    new, old, advantages, returns, mask = batch(seed)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda x: maths.policy_loss(x, old, advantages, mask, clip=0.2, weights=returns.abs()).loss,
        lambda x: maths.value_loss(x, old, returns, mask, 0.2).loss,
        lambda x: maths.masked_mean(maths.kl(x, old, "k3"), mask),
        lambda x: (maths.masked_whiten(x, mask) * returns).sum(),
    ]
    for loss in losses:
        x = new.clone().requires_grad_()
        (exact,) = torch.autograd.grad(loss(x), x)
        assert torch.allclose(exact, finite_difference(loss, new), atol=1e-6)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(AssertionError, match="shapes differ"):
        maths.gae(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool))
