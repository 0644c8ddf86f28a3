"""PPO and its relatives on tasks whose optimum is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.tiny_ppo import PROMPTS, config, train
from train.base import Base, reference_pass
from train.config import TrainConfig
from train.ppo import PpoResult
from train.rollout import Sample

ESTIMATORS = ["gae", "rloo", "grpo"]
PROMPT = PROMPTS[0]


def bandit(**ppo: object) -> TrainConfig:
    """One prompt, answers of one token: a bandit with an arm for each word."""
    settings = {"episodes": 64, "answers_per_prompt": 8, "minibatch": 32, "learning_rate": 0.01, **ppo}
    made = config(**settings)
    return made.model_copy(update={"rollout": made.rollout.model_copy(update={"max_tokens": 1})})


def best(base: Base, beta: float) -> tuple[float, float]:
    """Chance of pay, and KL, of the policy that maximises E[r] - beta KL(p || base), among all that a state can make.

    The policy is softmax(W h) and the final norm fixes |h|: the optimum over directions of h, found without PPO.
    """
    sample = Sample(PROMPT, (5,), (0.0,), "length")
    start = next(iter(reference_pass(base, [sample]))).states[0, 0].double()
    head = base.head.detach().double()
    reference = (head @ start).log_softmax(0)
    pay = (torch.arange(len(head)) % 8 == 5).double()
    state = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([state], max_iter=200, line_search_fn="strong_wolfe")

    def figures() -> tuple[torch.Tensor, torch.Tensor]:
        log_p = (head @ (state * start.norm() / state.norm())).log_softmax(0)
        return log_p.exp() @ pay, log_p.exp() @ (log_p - reference)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        chance, kl = figures()
        loss = beta * kl - chance
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    chance, kl = figures()
    return float(chance.detach()), float(kl.detach())


def paid(result: PpoResult, last: int = 6) -> float:
    """Share of the last iterations' answers that were paid."""
    return sum(metrics.score for metrics in result.metrics[-last:]) / last


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_a_bandit_is_solved(base: Base, tmp_path: Path, advantage: str) -> None:
    result = train(base, tmp_path, bandit(advantage=advantage, iterations=20), prompts=[PROMPT])
    assert result.metrics[0].score < 0.4
    assert paid(result) > best(base, 0.0)[0] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_with_a_price_on_kl_the_policy_ends_at_the_optimum_of_reward_less_kl(
    base: Base, tmp_path: Path, advantage: str
) -> None:
    chance, kl = best(base, 0.5)
    assert best(base, 0.0)[0] > chance + 0.2  # it is the price that decides
    result = train(base, tmp_path, bandit(advantage=advantage, iterations=26, kl_coefficient=0.5), prompts=[PROMPT])
    assert paid(result, last=14) == pytest.approx(chance, abs=0.06)  # 896 answers: two standard errors are 0.033
    assert sum(metrics.kl for metrics in result.metrics[-14:]) / 14 == pytest.approx(kl, abs=0.12)


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_where_kl_rules_the_policy_stays_at_the_reference(base: Base, tmp_path: Path, advantage: str) -> None:
    settings = bandit(advantage=advantage, iterations=8, kl_coefficient=20.0, learning_rate=0.003)
    result = train(base, tmp_path, settings, prompts=[PROMPT])
    assert paid(result) == pytest.approx(best(base, 1e6)[0], abs=0.07)
    assert abs(result.metrics[-1].kl) < 0.1


def gold(sample: Sample) -> int:
    """What a person would say: up to two such words are welcome, more are a chant."""
    found = sum(token % 8 == 5 for token in sample.response_ids)
    return min(found, 2) - 2 * max(found - 2, 0)


def mean_gold(samples: tuple[Sample, ...]) -> float:
    return sum(map(gold, samples)) / len(samples)


@pytest.mark.slow
def test_without_kl_the_reward_is_hacked_and_the_gold_score_falls_with_kl_it_rises(
    tiny_model: Path, tmp_path: Path
) -> None:
    ends = {}
    for name, beta in (("free", 0.0), ("held", 0.35)):
        settings = config(iterations=14, episodes=64, minibatch=16, kl_coefficient=beta)
        base = Base.load(tiny_model, settings.lora)
        base.adapters.add("policy", 0)
        ends[name] = train(base, tmp_path / name, settings)
    free, held = ends["free"], ends["held"]
    assert free.before == held.before
    start = mean_gold(free.before)
    # the proxy says that the free policy is by far the better one
    assert free.metrics[-1].score > 3.0
    assert 2.0 > held.metrics[-1].score > free.metrics[0].score + 0.3
    assert mean_gold(free.after) < start - 1.0
    assert mean_gold(held.after) > start + 0.2
