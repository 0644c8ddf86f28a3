"""PPO on the tiny model: it finds an optimum, it stays where KL rules, it resumes in the same bits."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.tiny_ppo import PROMPTS, WantsTokens, config, train
from train import checkpoint, maths
from train.base import POLICY, Base
from train.config import TrainConfig
from train.errors import BaseMismatch, CycleInterrupted, TrainingDiverged
from train.lora import digest
from train.ppo import PpoTrainer
from train.rollout import Sample
from train.sampler import LocalRollouts


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


def test_the_first_ratio_is_one_at_any_temperature(base: Base, tmp_path: Path) -> None:
    for name, old in (("a", "sampler"), ("b", "recompute")):
        base.adapters.add(POLICY, 0)
        settings = config(old_logprobs=old, iterations=2, episodes=16)
        settings = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"temperature": 0.6})})
        for metrics in train(base, tmp_path / name, settings).metrics:
            assert metrics.first_ratio_error <= (1e-4 if old == "sampler" else 0.0)
            assert metrics.sampler_mismatch < 1e-4


@pytest.mark.parametrize(("off_by", "capped"), [(-0.25, 0.0), (0.25, 0.0), (-1.0, 1.0)])
def test_a_remote_sampler_that_disagrees_is_corrected_for_and_measured(
    base: Base, tmp_path: Path, off_by: float, capped: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remote(LocalRollouts):
        local = False

        def generate(self, *args: object, **kwargs: object) -> list[Sample]:
            honest = super().generate(*args, **kwargs)  # type: ignore[arg-type]
            return [replace(s, logprobs=tuple(x + off_by for x in s.logprobs), states=None) for s in honest]

    given: list[Tensor] = []
    real = maths.policy_loss

    def noted(*args: Any, weights: Tensor, **more: Any) -> maths.PolicyLoss:
        given.append(weights[args[3]])
        return real(*args, weights=weights, **more)

    monkeypatch.setattr(maths, "policy_loss", noted)
    settings = config(iterations=1, episodes=16)
    result = PpoTrainer(base, Remote(base), WantsTokens(), PROMPTS, config=settings, folder=tmp_path).run()
    first = result.metrics[0]
    assert first.first_ratio_error == 0.0  # of the trainer's own pass, whatever the sampler said
    assert first.sampler_mismatch == pytest.approx(abs(off_by), abs=1e-4)
    assert first.importance_capped == capped
    expected = min(math.exp(-off_by), 2.0)
    assert given
    assert all(torch.allclose(w, torch.tensor(expected), atol=1e-3) for w in given)


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


def test_each_phase_gives_back_the_memory_that_it_leaves(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[None] = []
    monkeypatch.setattr("train.ppo.give_back", lambda: given.append(None))
    train(base, tmp_path, config(iterations=1))
    assert len(given) == 6  # sample, score, old, update; then the last policy is sampled and scored


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


@pytest.mark.parametrize(
    "ppo",
    [
        {"critic": "trunk"},
        {"critic": "lora"},
        {"advantage": "rloo", "reward_scaling": "running"},
        {"advantage": "grpo", "gradient_checkpointing": True},
    ],
)
def test_an_interrupted_run_resumes_to_the_same_bits(tiny_model: Path, tmp_path: Path, ppo: dict[str, object]) -> None:
    settings = config(iterations=3, kl_target=1.0, kl_coefficient=0.1, episodes=16, **ppo)

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
        assert replace(one, seconds={}) == replace(other, seconds={})
    assert len({metrics.kl_coefficient for metrics in whole.metrics}) > 1


def test_a_checkpoint_of_another_configuration_is_refused(base: Base, tmp_path: Path) -> None:
    train(base, tmp_path, config(iterations=1))
    with pytest.raises(BaseMismatch, match="remove it"):
        train(base, tmp_path, config(iterations=1, clip=0.3))


def test_early_stop_leaves_the_minibatch_that_went_too_far_unused(base: Base, tmp_path: Path) -> None:
    result = train(base, tmp_path, config(iterations=2, max_approx_kl=1e-9))
    assert result.metrics[0].stopped_early
    # the first minibatch is on-policy, KL 0; the second has moved
    assert result.metrics[0].updates == 1


def test_a_step_past_the_kl_bound_goes_back_to_it_and_the_best_policy_within_is_chosen(
    base: Base, tmp_path: Path
) -> None:
    settings = config(iterations=12, kl_coefficient=0.05)
    bounded = settings.governor.model_copy(update={"enabled": True, "max_kl": 4.0, "min_distinct_ratio": 0.0})
    bounded = bounded.model_copy(update={"max_perplexity_ratio": 1e9, "fluency_rate": 0.0, "final_answers": 0})
    result = train(base, tmp_path, settings.model_copy(update={"governor": bounded}))
    within = [judgement.within for judgement in result.judgements]
    assert len(within) == 13 + (not within[12])  # the last step, too, goes back and is judged once more
    assert not all(within)
    broken = within.index(False)
    assert "KL" in result.judgements[broken].breaches[0]
    assert result.metrics[broken].updates == 0
    assert result.metrics[broken].kl_coefficient == pytest.approx(1.5 * result.metrics[broken - 1].kl_coefficient)
    assert result.metrics[broken + 1].kl_coefficient == result.metrics[broken].kl_coefficient
    policies = [
        {k: v for k, v in checkpoint.load(tmp_path, at)[0].items() if k.startswith(f"{POLICY}/")}
        for at in range(broken - 1, broken + 2)
    ]
    # the root of the KL grows linearly along a step; 0.9 of the bound of 4 is aimed at
    begun, ended = (max(result.metrics[at].kl, 0.0) ** 0.5 for at in (broken - 1, broken))
    share = min(max((3.6**0.5 - begun) / (ended - begun), 0.25), 0.9)
    for name, tensor in policies[2].items():
        torch.testing.assert_close(tensor, policies[0][name] + share * (policies[1][name] - policies[0][name]))
    assert within[result.chosen]
    assert result.metrics[result.chosen].score == max(
        m.score for m, kept in zip(result.metrics, within, strict=True) if kept
    )
    tensors, _ = checkpoint.load(tmp_path, result.chosen)
    kept = {k.removeprefix(f"{POLICY}/"): v for k, v in tensors.items() if k.startswith(f"{POLICY}/")}
    assert digest(kept) == digest(base.adapters.state(POLICY))


def watched(settings: TrainConfig) -> TrainConfig:
    """With a governor whose bounds nothing breaks, and no finals."""
    bounds = {"enabled": True, "max_kl": 6.0, "min_distinct_ratio": 0.0, "max_perplexity_ratio": 1e9}
    bounds |= {"final_answers": 0}
    return settings.model_copy(update={"governor": settings.governor.model_copy(update=bounds)})


def test_a_kl_that_is_estimated_has_no_reference_to_sharpen_and_says_so(base: Base, tmp_path: Path) -> None:
    """Its perplexity, which nothing prices then, makes the KL dearer."""
    settings = watched(config(iterations=3, kl_coefficient=0.01, kl_estimator="k3"))
    bounded = settings.governor.model_copy(update={"max_kl": 1e9, "max_perplexity_ratio": 1.0, "perplexity_aim": 0.5})
    result = train(base, tmp_path, settings.model_copy(update={"governor": bounded}))
    assert {m.fluency_price for m in result.metrics} == {0.0}
    broken = next(at for at, judged in enumerate(result.judgements) if not judged.within)
    assert "perplexity" in result.judgements[broken].breaches[0]
    assert result.metrics[broken].kl_coefficient == pytest.approx(1.5 * result.metrics[broken - 1].kl_coefficient)


def test_each_update_is_priced_by_the_policy_that_it_begins_with(base: Base, tmp_path: Path) -> None:
    result = train(base, tmp_path, watched(config(iterations=4, kl_coefficient=0.5)))
    metrics = result.metrics
    assert [m.updates > 0 for m in metrics] == [True] * 4 + [False]
    roots = [math.sqrt(max(m.kl, 0.0)) for m in metrics]
    price, factors = 0.5, []
    for before, now, m in zip(roots, roots[1:], metrics[1:], strict=False):
        ahead = (now + (now - before)) / math.sqrt(0.9 * 6.0)
        factors.append(min(max(ahead, 1 / 1.5), 1.5))
        price = max(min(price * factors[-1], max(price, 0.5)), 0.25 * 0.5)
        assert m.kl_coefficient == pytest.approx(price)
    assert metrics[0].kl_coefficient == 0.5
    assert any(1 / 1.5 < factor < 1.5 for factor in factors)  # the limits alone would show little
    for m in metrics:
        strange = math.log(m.perplexity / metrics[0].perplexity / 1.15)
        assert m.fluency_price == pytest.approx(min(max(strange, 0.0), 1.0))
    assert metrics[-1].fluency_price > 0
    # within the bounds the score decides, though the first policy would be best by score less price
    assert result.chosen == max(range(5), key=lambda at: metrics[at].score) != 0
    assert max(range(5), key=lambda at: metrics[at].objective) == 0


@dataclass
class ToldTopic:
    """Says what share of the wording each policy keeps, and pays nothing for it."""

    shares: list[float]

    def kept(self, _turns: object) -> float:
        return self.shares.pop(0)

    def rewards(self, _turns: object, mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape)


def test_the_topic_is_paid_as_the_policies_before_an_update_kept_it(base: Base, tmp_path: Path) -> None:
    topic = ToldTopic([0.5, 0.45, 0.5, 0.6])
    metrics = train(base, tmp_path, watched(config(iterations=3)), topic=topic).metrics
    # aim 1.1 * 0.5; 6 a unit of what is short one update ahead: 0.45 after 0.5 makes 0.4, 0.5 after 0.45 just 0.55
    assert [m.topic_price for m in metrics] == pytest.approx([0.5, 0.5 + 6 * 0.15, 1.4, 1.4 - 6 * 0.15])


def test_a_price_with_a_target_of_its_own_is_left_to_its_controller(base: Base, tmp_path: Path) -> None:
    settings = config(iterations=3, kl_coefficient=0.1, kl_target=5.0, kl_horizon=100.0)
    metrics = train(base, tmp_path, watched(settings)).metrics
    # Ziegler et al. 2019: times 1 + clip(KL / target - 1, -0.2, 0.2) episodes / horizon
    for before, now in itertools.pairwise(metrics):
        factor = 1 + min(max(before.kl / 5.0 - 1, -0.2), 0.2) * 32 / 100
        assert now.kl_coefficient == pytest.approx(before.kl_coefficient * factor)


def test_the_last_step_goes_back_too_and_is_judged_once_more(base: Base, tmp_path: Path) -> None:
    settings = config(iterations=1)
    bounded = settings.governor.model_copy(
        update={"enabled": True, "max_kl": 0.02, "min_distinct_ratio": 0.0, "max_perplexity_ratio": 1e9}
    )
    result = train(base, tmp_path, settings.model_copy(update={"governor": bounded}))
    assert [m.updates > 0 for m in result.metrics] == [True, False, False]
    assert not result.judgements[1].within
    before, whole, kept = (
        {k: v for k, v in checkpoint.load(tmp_path, at)[0].items() if k.startswith(f"{POLICY}/")} for at in range(3)
    )
    # from KL 0 the root of the KL grows linearly to that of the whole step; 0.9 of the bound is aimed at
    share = max((0.9 * 0.02 / result.metrics[1].kl) ** 0.5, 0.25)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, before[name] + share * (whole[name] - before[name]))
    assert result.metrics[2].kl < result.metrics[1].kl
    assert len(result.after) == settings.ppo.episodes
    # a bound that can't be kept: one step back, and no further
    hopeless = bounded.model_copy(update={"max_kl": 1e-9})
    result = train(base, tmp_path / "hopeless", settings.model_copy(update={"governor": hopeless}))
    assert ([judgement.within for judgement in result.judgements], result.chosen) == ([True, False, False], 0)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.train.tiny_ppo import *\n"
        "from train.base import POLICY; from train.lora import digest\n"
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
