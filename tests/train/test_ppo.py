"""PPO on the tiny model: it finds an optimum, it stays where KL rules, it resumes in the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train import checkpoint
from train.base import POLICY, Base
from train.config import TrainConfig
from train.errors import BaseMismatch, CycleInterrupted, TrainingDiverged
from train.lora import digest
from train.ppo import PpoResult, PpoTrainer
from train.rollout import Sample
from train.sampler import LocalRollouts

PROMPTS = [(1, 20, 30, 40), (1, 20, 31), (1, 20, 30, 41, 50), (1, 22)]


@dataclass(frozen=True)
class WantsTokens:
    """Pays for every token whose id leaves 5 when divided by 8; token rewards add up to the score."""

    layers: tuple[int, ...] = (0, 1)
    model_id: str = "wants-tokens"
    price: float = 1.0

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        assert set(hidden) == {0, 1}
        assert hidden[0].shape[:2] == token_ids.shape == prompt_mask.shape
        return self.price * ((token_ids % 8 == 5) & response_mask).float()

    def foresight(self, embeddings: Tensor) -> None:
        return None

    standing_width: int = 0

    def standing(self, token_ids: Tensor, response_mask: Tensor) -> Tensor:
        return torch.zeros((*token_ids.shape, 0))


def config(**ppo: object) -> TrainConfig:
    settings = {
        "iterations": 3,
        "episodes": 32,
        "minibatch": 8,
        "learning_rate": 0.02,
        "value_learning_rate": 0.01,
        "max_approx_kl": None,
        "kl_coefficient": 0.0,
        **ppo,
    }
    return TrainConfig.model_validate(
        {
            "ppo": settings,
            "rollout": {"max_tokens": 4},
            "governor": {"enabled": False},
            "lora": {"rank": 4, "alpha": 8},
        }
    )


def train(base: Base, folder: Path, settings: TrainConfig, price: float = 1.0, **more: object) -> PpoResult:
    trainer = PpoTrainer(
        base,
        LocalRollouts(base),
        WantsTokens(price=price),
        PROMPTS,
        config=settings,
        folder=folder,
        **more,  # type: ignore[arg-type]
    )
    return trainer.run()


@pytest.mark.parametrize("credit", ["token", "end"])
def test_ppo_finds_the_token_that_is_paid_for(base: Base, tmp_path: Path, credit: str) -> None:
    settings = config(iterations=12)
    settings = settings.model_copy(update={"reward": settings.reward.model_copy(update={"credit": credit})})
    result = train(base, tmp_path, settings)
    assert result.metrics[0].score < 1.2
    # 4 is the most; the end of turn may come first
    assert result.metrics[-1].score > (3.0 if credit == "token" else 2.0)
    assert result.chosen >= 8
    assert result.metrics[-1].updates == 0


def test_where_kl_rules_the_policy_stays_at_the_reference(base: Base, tmp_path: Path) -> None:
    free = train(base, tmp_path / "free", config(iterations=8, learning_rate=0.005))
    assert free.metrics[-1].score > free.metrics[0].score + 0.8
    base.adapters.add(POLICY, 0)
    held = train(base, tmp_path / "held", config(iterations=8, learning_rate=0.005, kl_coefficient=20.0))
    assert held.metrics[-1].score < held.metrics[0].score + 0.5
    assert abs(held.metrics[-1].kl) < 0.5


def test_the_first_ratio_is_one(base: Base, tmp_path: Path) -> None:
    from_sampler = train(base, tmp_path / "a", config())
    assert all(metrics.first_ratio_error < 1e-4 for metrics in from_sampler.metrics)
    base.adapters.add(POLICY, 0)
    recomputed = train(base, tmp_path / "b", config(old_logprobs="recompute"))
    assert all(metrics.first_ratio_error == 0.0 for metrics in recomputed.metrics)
    assert all(0 <= metrics.sampler_mismatch < 1e-4 for metrics in recomputed.metrics)


def test_a_sampler_that_lies_about_its_logprobs_is_caught(base: Base, tmp_path: Path) -> None:
    class Liar(LocalRollouts):
        def generate(self, *args: object, **kwargs: object) -> list[Sample]:
            honest = super().generate(*args, **kwargs)  # type: ignore[arg-type]
            return [
                Sample(s.prompt_ids, s.response_ids, tuple(x + 0.1 for x in s.logprobs), s.finish_reason, s.states)
                for s in honest
            ]

    trainer = PpoTrainer(base, Liar(base), WantsTokens(), PROMPTS, config=config(), folder=tmp_path)
    with pytest.raises(TrainingDiverged, match="disagree"):
        trainer.run()


def test_gradient_accumulation_changes_nothing_but_rounding(tiny_model: Path, tmp_path: Path) -> None:
    states = []
    for name, micro in (("whole", 4096), ("cut", 64)):
        base = Base.load(tiny_model, config().lora)
        base.adapters.add(POLICY, 0)
        train(base, tmp_path / name, config(iterations=1, micro_tokens=micro, minibatch=32))
        tensors, _ = checkpoint.load(tmp_path / name, 1)
        states.append({key: value for key, value in tensors.items() if key.startswith("policy_optimiser")})
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], atol=1e-5), key


@pytest.mark.parametrize("critic", ["trunk", "lora"])
def test_an_interrupted_run_resumes_to_the_same_bits(tiny_model: Path, tmp_path: Path, critic: str) -> None:
    settings = config(iterations=3, critic=critic, kl_target=1.0)

    def fresh() -> Base:
        base = Base.load(tiny_model, settings.lora)
        base.adapters.add(POLICY, 0)
        return base

    whole_base = fresh()
    whole = train(whole_base, tmp_path / "whole", settings)
    asked = 0

    def stop_in_the_second_iteration() -> bool:
        nonlocal asked
        asked += 1
        return asked == 6

    with pytest.raises(CycleInterrupted):
        train(fresh(), tmp_path / "cut", settings, should_stop=stop_in_the_second_iteration)
    resumed_base = fresh()
    resumed = train(resumed_base, tmp_path / "cut", settings)
    assert digest(resumed_base.adapters.state(POLICY)) == digest(whole_base.adapters.state(POLICY))
    assert resumed.chosen == whole.chosen
    assert resumed.before == whole.before
    for one, other in zip(resumed.metrics, whole.metrics, strict=True):
        assert (one.score, one.kl, one.value_loss, one.kl_coefficient) == (
            other.score,
            other.kl,
            other.value_loss,
            other.kl_coefficient,
        )


def test_a_checkpoint_of_another_configuration_is_refused(base: Base, tmp_path: Path) -> None:
    train(base, tmp_path, config(iterations=1))
    with pytest.raises(BaseMismatch, match="remove it"):
        train(base, tmp_path, config(iterations=1, clip=0.3))


def test_a_reward_that_is_not_finite_ends_the_run(base: Base, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="not finite"):
        train(base, tmp_path, config(), price=float("nan"))


def test_early_stop_leaves_the_minibatch_that_went_too_far_unused(base: Base, tmp_path: Path) -> None:
    result = train(base, tmp_path, config(iterations=2, max_approx_kl=1e-9))
    assert result.metrics[0].stopped_early
    # the first minibatch is on-policy, KL 0; the second has moved
    assert result.metrics[0].updates == 1


def test_a_step_past_a_bound_is_taken_half_back_and_the_best_policy_within_is_chosen(
    base: Base, tmp_path: Path
) -> None:
    settings = config(iterations=12)
    bounded = settings.governor.model_copy(update={"enabled": True, "max_kl": 4.0, "min_distinct_ratio": 0.0})
    bounded = bounded.model_copy(update={"max_perplexity_ratio": 1e9, "fluency_rate": 0.0})
    result = train(base, tmp_path, settings.model_copy(update={"governor": bounded}))
    within = [judgement.within for judgement in result.judgements]
    assert len(within) == 13
    assert not all(within)
    broken = within.index(False)
    assert "KL" in result.judgements[broken].breaches[0]
    assert result.metrics[broken].updates == 0
    assert result.metrics[broken + 1].kl_coefficient == pytest.approx(1.5 * result.metrics[broken].kl_coefficient)
    policies = [
        {k: v for k, v in checkpoint.load(tmp_path, at)[0].items() if k.startswith(f"{POLICY}/")}
        for at in range(broken - 1, broken + 2)
    ]
    for name, tensor in policies[2].items():
        torch.testing.assert_close(tensor, (policies[0][name] + policies[1][name]) / 2)
    assert within[result.chosen]
    assert result.metrics[result.chosen].objective == max(
        m.objective for m, kept in zip(result.metrics, within, strict=True) if kept
    )
    tensors, _ = checkpoint.load(tmp_path, result.chosen)
    kept = {k.removeprefix(f"{POLICY}/"): v for k, v in tensors.items() if k.startswith(f"{POLICY}/")}
    assert digest(kept) == digest(base.adapters.state(POLICY))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.train.test_ppo import *\n"
        "base = Base.load(Path(sys.argv[1]), config().lora); base.adapters.add(POLICY, 0)\n"
        "train(base, Path(sys.argv[2]), config(iterations=5), observe=lambda m, j: print(m.iteration, flush=True))\n"
        "print(digest(base.adapters.state(POLICY)), flush=True)"
    )

    def start(folder: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(tiny_model), str(tmp_path / folder)], stdout=subprocess.PIPE, text=True
        )

    expected = start("whole").communicate(timeout=120)[0].split()[-1]
    for kills in range(3):
        process = start("killed")
        assert process.stdout is not None
        process.stdout.readline()
        if kills == 2:
            got = process.communicate(timeout=120)[0].split()[-1]
            assert got == expected
            return
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_checkpoints_are_json_and_safetensors_only(base: Base, tmp_path: Path) -> None:
    train(base, tmp_path, config(iterations=1))
    files = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"state.safetensors", "state.json"}
    json.loads((tmp_path / "iteration-0001" / "state.json").read_text())


def test_a_run_that_goes_on_from_an_adapter_is_judged_by_the_base(stirred: Base, tmp_path: Path) -> None:
    train(stirred, tmp_path, config(iterations=1))
    _, record = checkpoint.load(tmp_path, 1)
    assert record["baseline"]["kl"] == 0.0
    assert record["metrics"][0]["kl"] > 0.1
    assert record["baseline"]["perplexity"] < record["metrics"][0]["perplexity"]
