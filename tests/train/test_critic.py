"""A critic that begins as the reward model, and its warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.conftest import Turn
from tests.train.tiny_ppo import PROMPTS, WantsTokens, config
from train.base import CRITIC, POLICY, Base, states_pass
from train.config import TrainConfig
from train.critic import Critic
from train.heads import ValueHead
from train.lora import digest
from train.packing import groups
from train.ppo import PpoTrainer
from train.reward.last import ADAPTER, LastHead
from train.sampler import LocalRollouts


@pytest.fixture
def reward(base: Base) -> LastHead:
    """A textbook head with an adapter that is not at zero."""
    base.adapters.add(ADAPTER, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in base.adapters.parameters(ADAPTER):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return LastHead(base, torch.randn(base.width, generator=generator), 0.7, 2.0, True, {})


def seen(critic: Critic, turns: Sequence[Turn], base: Base) -> tuple[Tensor, Tensor]:
    """The states that the critic reads, and the mask."""
    states, mask = states_pass(base, turns, adapter=CRITIC)
    return critic.states(turns, torch.zeros_like(states)), mask


def settings(**ppo: object) -> TrainConfig:
    return config(critic="lora", micro_tokens=64, **ppo)


def test_a_head_that_adopts_weights_says_what_they_said() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(50, 8, generator=generator) * torch.tensor([900.0] + [1.0] * 7) + 3
    weight = torch.randn(8, generator=generator)
    head = ValueHead(8)
    head.calibrate(states)
    head.adopt(weight, 0.5, 2.0)
    assert torch.allclose(head(states), (states @ weight - 0.5) / 2.0, rtol=1e-3, atol=1e-3)


def test_the_critic_begins_as_the_reward_model(base: Base, turns: Sequence[Turn], reward: LastHead) -> None:
    critic = Critic(base, reward, settings(critic_warmup=0))
    states, mask = seen(critic, turns, base)
    as_reward, _ = states_pass(base, turns, adapter=ADAPTER)
    assert torch.equal(states, as_reward)
    values = critic.values(turns, states, torch.zeros(mask.shape), mask, first=True)
    assert torch.allclose(values[mask], (as_reward[mask] @ reward.weight - 0.7) / 2.0, atol=1e-4)
    # a copy: training the critic leaves the reward model alone
    before = reward.model_id
    critic.values(turns, states, torch.ones(mask.shape), mask, first=False)
    assert reward.model_id == before


def test_the_warm_up_trains_the_critic_alone_and_no_answer_has_seen_its_own_return(
    base: Base, turns: Sequence[Turn], reward: LastHead
) -> None:
    turns = [Turn(t.prompt_ids, tuple(token + at for token in t.response_ids)) for at in range(8) for t in turns]
    batches = groups(turns, 64)
    assert len(batches) > 1
    one = batches[0][0]

    def warmed(factor: float, epochs: int) -> tuple[Tensor, Tensor, str]:
        base.adapters.add(CRITIC, 0)
        critic = Critic(base, reward, settings(critic_warmup=epochs, value_learning_rate=0.003))
        states, mask = seen(critic, turns, base)
        rewards = torch.where(mask, 0.3, 0.0)
        rewards[one] *= factor
        values = critic.values(turns, states, rewards, mask, first=True)
        again, _ = seen(critic, turns, base)
        with torch.no_grad():
            after = torch.where(mask, critic.head(again), 0.0)
        return values, after, digest(base.adapters.state(CRITIC))

    policy, as_it_was = digest(base.adapters.state(POLICY)), reward.model_id
    values, _, trained = warmed(1.0, 1)
    changed, _, other = warmed(9.0, 1)
    assert torch.equal(values[batches[0]], changed[batches[0]])
    assert not torch.equal(values[batches[-1]], changed[batches[-1]])
    assert trained != other
    _, trained_once, _ = warmed(1.0, 1)
    _, trained_longer, _ = warmed(1.0, 10)
    returns = torch.tensor([[len(t.response_ids) * 0.3] for t in turns])
    errors = [float((told[:, :1] - returns).abs().mean()) for told in (values, trained_once, trained_longer)]
    assert errors[1] < errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert digest(base.adapters.state(POLICY)) == policy
    assert reward.model_id == as_it_was


def test_a_refitted_trunk_and_a_reward_model_of_another_shape_start_as_before(base: Base, reward: LastHead) -> None:
    for given, chosen in ((reward, config()), (WantsTokens(), settings())):
        assert Critic(base, given, chosen)._start is None
    # a trunk has no states of the reward model's adapter to read
    assert Critic(base, reward, config(critic_refit=False))._start is None


def test_a_run_with_such_a_critic_resumes_to_the_same_bits(base: Base, tmp_path: Path, reward: LastHead) -> None:
    def run(folder: str, **more: object) -> str:
        base.adapters.add(POLICY, 0)
        PpoTrainer(
            base,
            LocalRollouts(base),
            reward,
            PROMPTS,
            config=settings(iterations=2, episodes=8),
            folder=tmp_path / folder,
            **more,  # type: ignore[arg-type]
        ).run()
        return digest(base.adapters.state(POLICY)) + digest(base.adapters.state(CRITIC))

    class Killed(BaseException):
        pass

    def dies(metrics: object, _judgement: object) -> None:
        if metrics.iteration == 1:  # type: ignore[attr-defined]
            raise Killed

    whole = run("whole")
    with pytest.raises(Killed):
        run("cut", observe=dies)
    assert run("cut") == whole
