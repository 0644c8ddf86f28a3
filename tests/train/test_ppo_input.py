"""Numbers that are no numbers end a run in one line, and nothing of them reaches the next start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.tiny_ppo import PROMPTS, WantsTokens, config, train
from train import checkpoint
from train.base import POLICY, Base
from train.errors import TrainingDiverged
from train.ppo import PpoTrainer
from train.rollout import Sample
from train.sampler import LocalRollouts


@pytest.mark.parametrize("price", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_ends_the_run(base: Base, tmp_path: Path, price: float) -> None:
    with pytest.raises(TrainingDiverged, match="score that is not finite; refit") as told:
        train(base, tmp_path, config(), price=price)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_steps_that_blow_up_end_the_run_and_the_checkpoint_stays_finite(
    base: Base, tmp_path: Path, advantage: str
) -> None:
    with pytest.raises(TrainingDiverged, match=r"not finite; lower train\.ppo\.learning_rate") as told:
        train(base, tmp_path, config(learning_rate=1e30, advantage=advantage))
    assert "\n" not in str(told.value)
    last = checkpoint.latest(tmp_path)
    assert last is not None
    tensors, _ = checkpoint.load(tmp_path, last)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def poison_loss(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import maths

    real = maths.policy_loss
    monkeypatch.setattr(maths, "policy_loss", lambda *a, **k: replace(real(*a, **k), loss=torch.tensor(math.nan)))


def poison_gradient(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = base.adapters.parameters(POLICY)[0]
    weight.register_hook(lambda grad: grad * math.inf)


@pytest.mark.parametrize(("poison", "what"), [(poison_loss, "a loss"), (poison_gradient, "a gradient")])
def test_one_bad_number_is_caught_before_the_step(
    base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[Base, pytest.MonkeyPatch], None],
    what: str,
) -> None:
    before = [weight.detach().clone() for weight in base.adapters.parameters(POLICY)]
    poison(base, monkeypatch)
    with pytest.raises(TrainingDiverged, match=f"{what} is not finite"):
        train(base, tmp_path, config())
    after = base.adapters.parameters(POLICY)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_sampler_whose_logprobs_are_not_finite_ends_the_run(base: Base, tmp_path: Path) -> None:
    class Broken(LocalRollouts):
        def generate(self, *args: object, **kwargs: object) -> list[Sample]:
            whole = super().generate(*args, **kwargs)  # type: ignore[arg-type]
            return [replace(sample, logprobs=(math.nan,) * len(sample.logprobs)) for sample in whole]

    trainer = PpoTrainer(base, Broken(base), WantsTokens(), PROMPTS, config=config(), folder=tmp_path)
    with pytest.raises(TrainingDiverged, match="log-probs are not finite"):
        trainer.run()
