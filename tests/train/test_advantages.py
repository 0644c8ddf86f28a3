"""Advantages, rewards and their scale: hand-worked numbers, slow loops, properties."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.train.tiny_ppo import WantsTokens, config, train
from train import checkpoint, maths
from train.advantage import GaeAdvantages, GroupAdvantages, advantage_estimator
from train.base import Base
from train.config import TrainConfig
from train.experience import Old, Scored, shaped
from train.rollout import Sample
from train.scaling import RunningScale

SCORES = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=6)


def scored(rewards: list[list[float]], cut: tuple[int, ...] = ()) -> Scored:
    """Answers with these token rewards; those whose index is in `cut` did not end by themselves."""
    width = max(map(len, rewards))
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rewards])
    table = torch.tensor([row + [0.0] * (width - len(row)) for row in rewards])
    samples = [
        Sample((1,), (3,) * len(row), (-1.0,) * len(row), "length" if at in cut else "stop")
        for at, row in enumerate(rewards)
    ]
    flat = torch.where(mask, -1.0, 0.0)
    return Scored(samples, mask, flat, flat - 0.5 * mask, torch.zeros(len(rewards), width, 0), table, table.sum(1))


def test_leave_one_out_of_hand_worked_groups() -> None:
    # 1 less the mean of 2 and 6; 2 less that of 1 and 6; 6 less that of 1 and 2
    got = maths.leave_one_out(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), 3)
    assert got.tolist() == pytest.approx([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0])


def test_group_normalised_of_hand_worked_groups() -> None:
    # mean 3, sample deviation sqrt((4 + 1 + 9) / 2) = sqrt 7; a group without spread is 0
    got = maths.group_normalised(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), 3)
    assert got.tolist() == pytest.approx([-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7), 0, 0, 0], abs=1e-4)


@given(SCORES, SCORES)
def test_group_advantages_are_those_of_a_slow_loop_and_groups_do_not_mix(one: list[float], other: list[float]) -> None:
    size = min(len(one), len(other))
    rows = one[:size] + other[:size]
    left, normal = maths.leave_one_out(torch.tensor(rows), size), maths.group_normalised(torch.tensor(rows), size)
    for start in (0, size):
        group = rows[start : start + size]
        mean = sum(group) / size
        deviation = math.sqrt(sum((x - mean) ** 2 for x in group) / (size - 1))
        for at, x in enumerate(group):
            rest = [y for place, y in enumerate(group) if place != at]
            assert float(left[start + at]) == pytest.approx(x - sum(rest) / len(rest), abs=1e-3)
            assert float(normal[start + at]) == pytest.approx((x - mean) / (deviation + 1e-4), abs=1e-3, rel=1e-2)


@given(SCORES, st.floats(-50, 50))
def test_a_baseline_of_the_others_ignores_what_all_share_and_adds_up_to_nothing(rows: list[float], by: float) -> None:
    scores = torch.tensor(rows)
    got = maths.leave_one_out(scores, len(rows))
    assert float(got.sum()) == pytest.approx(0, abs=1e-2)
    assert torch.allclose(got, maths.leave_one_out(scores + by, len(rows)), atol=1e-3)


def test_one_answer_has_no_others() -> None:
    with pytest.raises(AssertionError, match="two answers"):
        maths.leave_one_out(torch.ones(3), 1)
    with pytest.raises(AssertionError, match="whole groups"):
        maths.group_normalised(torch.ones(3), 2)


@given(st.integers(0, 1000), st.floats(0.1, 9), st.floats(-9, 9))
def test_whitening_forgets_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.ones_like(x, dtype=torch.bool)
    assert torch.allclose(maths.masked_whiten(x, mask), maths.masked_whiten(scale * x + shift, mask), atol=1e-4)


@given(st.integers(0, 1000), st.floats(-5, 5))
def test_gae_is_linear_in_rewards_and_values(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    r1, r2, v1, v2 = (torch.randn(2, 4, generator=generator) for _ in range(4))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    both = maths.gae(r1 + factor * r2, v1 + factor * v2, mask, 0.9, 0.7).advantages
    apart = maths.gae(r1, v1, mask, 0.9, 0.7).advantages + factor * maths.gae(r2, v2, mask, 0.9, 0.7).advantages
    assert torch.allclose(both, apart, atol=1e-4)


def group_settings(advantage: str, **ppo: object) -> GroupAdvantages:
    return GroupAdvantages(config(advantage=advantage, answers_per_prompt=2, **ppo).ppo)


def test_every_token_of_an_answer_gets_the_answers_advantage() -> None:
    answers = scored([[1.0, 2.0], [5.0], [0.0], [0.0, 0.0]])
    old = Old(answers.sampled, torch.zeros(0))
    # worths 3 and 5: -2 and 2; a group of equals: 0
    got = group_settings("rloo", whiten_advantages=False).estimate(answers, old, answers.rewards, first=True)
    assert got.advantages.tolist() == [[-2, -2], [2, 0], [0, 0], [0, 0]]
    assert (got.unit, got.critic) == (1.0, None)
    # grpo: 2 and its deviation sqrt 2
    got = group_settings("grpo").estimate(answers, old, answers.rewards, first=True)
    root = 1 / math.sqrt(2)
    assert got.advantages.flatten().tolist() == pytest.approx([-root, -root, root, 0, 0, 0, 0, 0], abs=1e-4)
    assert got.unit == 1.0


def test_whitened_leave_one_out_says_what_its_unit_is_worth() -> None:
    answers = scored([[3.0], [5.0]])
    got = group_settings("rloo").estimate(answers, Old(answers.sampled, torch.zeros(0)), answers.rewards, first=True)
    assert got.advantages.flatten().tolist() == pytest.approx([-1, 1])
    assert got.unit == pytest.approx(2.0)


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_without_gae_no_critic_is_built_run_or_kept(
    base: Base, tmp_path: Path, advantage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a critic was built")

    monkeypatch.setattr("train.advantage.Critic", refuse)
    settings = config(advantage=advantage, iterations=1, episodes=8, critic="lora")
    before = set(next(iter(base.adapters.layers.values())).lora_a)
    result = train(base, tmp_path, settings)
    assert result.metrics[0].value_loss == result.metrics[0].explained_variance == 0.0
    assert result.metrics[0].updates == 1
    assert set(next(iter(base.adapters.layers.values())).lora_a) == before
    tensors, _ = checkpoint.load(tmp_path, 1)
    assert {name.split("/")[0].split(".")[0] for name in tensors} == {"policy", "policy_optimiser"}


def test_gae_is_the_default_and_has_a_critic(base: Base) -> None:
    assert isinstance(advantage_estimator(base, WantsTokens(), config()), GaeAdvantages)


@pytest.mark.parametrize(
    ("ppo", "line"),
    [
        ({"advantage": "rloo", "answers_per_prompt": 1}, "answers_per_prompt of 2"),
        ({"kl_estimator": "k1", "kl_in": "loss", "kl_coefficient": 0.1}, "pulls nowhere"),
        ({"kl_estimator": "exact", "kl_in": "reward"}, 'kl_in = "loss"'),
        ({"episodes": 32, "kl_target": 5.0, "kl_horizon": 6.4}, "more than a fifth"),  # 1 - 0.2 * 32 / 6.4 is 0
    ],
)
def test_settings_that_cannot_work_are_refused(ppo: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        config(**ppo)


@pytest.mark.parametrize("reward", [{"members": 1}, {"members": 0}, {"head": "last"}])
def test_pessimism_without_an_ensemble_is_refused(reward: dict[str, object]) -> None:
    assert TrainConfig.model_validate({"reward": {"pessimism": 0.5}}).reward.pessimism == 0.5
    with pytest.raises(ValidationError, match="members of 2 or more"):
        TrainConfig.model_validate({"reward": {"pessimism": 0.5, **reward}})


@pytest.mark.parametrize("depths", [(), (0.5, 1.2), (-0.1,)])
def test_a_reward_model_that_reads_no_layer_is_refused(depths: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="depths"):
        TrainConfig.model_validate({"reward": {"depths": depths}})


def test_rewards_are_scaled_then_clipped_then_fined_then_pay_for_kl() -> None:
    answers = scored([[4.0, -1.0], [2.0]], cut=(0,))
    old = Old(answers.sampled, torch.zeros(0))
    settings = config(reward_clip=1.5, missing_eos_penalty=0.25, kl_estimator="k1", kl_in="reward")
    # halved: 2, -0.5 | 1; clipped: 1.5, -0.5 | 1; cut off: -0.75; each token is 0.5 nats from the reference at 0.2
    got = shaped(answers, old, 0.2, settings, divisor=2.0)
    assert got.flatten().tolist() == pytest.approx([1.4, -0.85, 0.9, 0.0])


def test_an_answer_that_was_cut_off_gets_the_score_that_was_set() -> None:
    answers = scored([[4.0, -1.0], [2.0]], cut=(0,))
    got = shaped(answers, Old(answers.sampled, torch.zeros(0)), 0.0, config(missing_eos_score=-1.0))
    assert got.tolist() == [[0.0, -1.0], [2.0, 0.0]]


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_running_scale_is_that_of_all_scores_together(rounds: list[list[float]]) -> None:
    scale = RunningScale()
    for scores in rounds:
        scale = scale.updated(torch.tensor(scores))
    everything = [x for scores in rounds for x in scores]
    mean = sum(everything) / len(everything)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in everything) / len(everything))
    assert scale.count == len(everything)
    if deviation > 1e-2:
        assert scale.deviation == pytest.approx(deviation, rel=1e-4)


def test_equal_scores_have_no_scale_of_their_own() -> None:
    assert RunningScale().deviation == RunningScale().updated(torch.full((3,), 7.0)).deviation == 1.0


@pytest.mark.parametrize("scaling", ["batch", "running"])
def test_scaled_rewards_learn_the_same_whatever_their_size(base: Base, tmp_path: Path, scaling: str) -> None:
    settings = config(iterations=1, episodes=16, reward_scaling=scaling, whiten_advantages=False)
    losses = []
    for price in (1.0, 1000.0):
        base.adapters.add("policy", 0)
        result = train(base, tmp_path / str(price), settings, price=price)
        assert result.metrics[0].reward_divisor == pytest.approx(result.metrics[0].score_std)
        losses.append(result.metrics[0].value_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_scored_answers_are_not_changed_by_shaping() -> None:
    answers = scored([[4.0, -1.0]], cut=(0,))
    before = replace(answers, rewards=answers.rewards.clone())
    shaped(answers, Old(answers.sampled, torch.zeros(0)), 0.1, config(reward_clip=1.0, missing_eos_penalty=1.0))
    assert torch.equal(before.rewards, answers.rewards)
