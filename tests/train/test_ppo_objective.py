"""The whole PPO loss: its gradients against finite differences, and what must not change it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.train.conftest import Turn
from tests.train.tiny_ppo import WantsTokens, config
from train.advantage import CriticTargets, Estimate
from train.base import CRITIC, POLICY, Base, policy_pass, reference_pass, states_pass
from train.config import TrainConfig
from train.critic import Critic
from train.experience import Old, Scored
from train.packing import pack
from train.reward.foresight import Tilt
from train.rollout import Sample
from train.update import Targets, Updater, critic_objective, policy_objective

ROWS = [0, 1, 2, 3, 4]


def noise(like: Tensor, seed: int, scale: float) -> Tensor:
    return scale * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def targets(base: Base, turns: Sequence[Turn]) -> Targets:
    """Old log-probs near enough to the policy's that some ratios are clipped and some are not; the rest random."""
    samples = [Sample(t.prompt_ids, t.response_ids, (0.0,) * len(t.response_ids), "length") for t in turns]
    with torch.no_grad():
        found = policy_pass(base, samples)
        critic, _ = states_pass(base, samples, adapter=CRITIC)
    mask = found.mask
    reference = torch.zeros_like(found.logprobs)
    states = torch.zeros_like(found.states)
    for chunk in reference_pass(base, samples):
        width = chunk.logprobs.shape[1]
        reference[chunk.rows, :width] = chunk.logprobs.to(reference.dtype)
        states[chunk.rows, :width] = chunk.states.to(states.dtype)
    old = found.logprobs + noise(reference, 1, 0.25)
    assert ((old - found.logprobs).exp()[mask] > 1.25).any()
    scored = Scored(samples, mask, old, reference, states, reference, reference.sum(1))
    values = noise(reference, 2, 0.3)
    estimate = Estimate(noise(reference, 3, 1.0), 0.5, CriticTargets(critic, values, values + noise(values, 4, 0.3)))
    return Targets(scored, Old(old, found.states), estimate, noise(reference, 5, 1.0).exp().clamp(max=2.0))


def whole_loss(base: Base, critic: Critic, aims: Targets, settings: TrainConfig) -> Tensor:
    policy = policy_objective(base, ROWS, aims, 0.3, settings)
    assert aims.estimate.critic is not None
    value = critic_objective(critic, aims.scored.samples, aims.estimate.critic, policy.mask, settings)
    return policy.loss + settings.ppo.value_coefficient * value.loss


@pytest.fixture
def double(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """Base, policy and critic in float64 throughout; the adapters are no longer at zero."""

    def norm(self: nn.Module, x: Tensor) -> Tensor:  # transformers' own rounds to float32
        weight: Tensor = self.weight  # type: ignore[assignment]
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    base = Base.load(tiny_model, config().lora, dtype="float64")
    base.adapters.add(POLICY, 0)
    return base


def in_float64(base: Base, adapter: str, seed: int) -> list[nn.Parameter]:
    for at, layer in enumerate(base.adapters.layers.values()):
        for part, weights in enumerate((layer.lora_a, layer.lora_b)):
            old = weights[adapter].detach().double()
            weights[adapter] = nn.Parameter(old + noise(old, seed + 2 * at + part, 0.1))
    return base.adapters.parameters(adapter)


@pytest.mark.parametrize(
    "ppo",
    [
        {"kl_estimator": "exact", "kl_in": "loss", "entropy_coefficient": 0.2},
        {"kl_estimator": "k3", "kl_in": "loss"},
        {"kl_estimator": "k2", "kl_in": "loss", "gradient_checkpointing": True},
    ],
)
def test_gradients_of_the_whole_loss_agree_with_finite_differences(
    double: Base, turns: Sequence[Turn], ppo: dict[str, object]
) -> None:
    settings = config(critic="lora", **ppo)
    critic = Critic(double, WantsTokens(), settings)
    critic.head.double()
    weights = in_float64(double, POLICY, 100) + in_float64(double, CRITIC, 200) + list(critic.head.parameters())
    aims = targets(double, turns)
    critic.head.calibrate(aims.estimate.critic.states[aims.scored.mask])  # type: ignore[union-attr]
    with torch.no_grad():
        critic.head.weight.copy_(noise(critic.head.weight, 6, 1.0))
    double.gradient_checkpointing = settings.ppo.gradient_checkpointing
    exact = torch.autograd.grad(whole_loss(double, critic, aims, settings), weights)
    assert all(float(g.abs().max()) > 0 for g in exact)
    step = 1e-6
    with torch.no_grad():
        for at, (weight, grad) in enumerate(zip(weights, exact, strict=True)):
            if at % 5 and at < len(weights) - 2:  # some of each layer's, and the head
                continue
            direction = noise(weight, 300 + at, 1.0)
            sides = []
            for sign in (1, -2):
                weight.add_(direction, alpha=sign * step)
                sides.append(float(whole_loss(double, critic, aims, settings)))
            weight.add_(direction, alpha=step)
            slope = (sides[0] - sides[1]) / (2 * step)
            assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-5, abs=1e-8)


def slow_policy_loss(
    base: Base, aims: Targets, settings: TrainConfig, coefficient: float, foreseen: Tensor | None = None
) -> float:
    """The objective token by token, from whole distributions of each sequence run alone.

    `foreseen` (M, V): what each candidate token would earn at the answers' places, one answer after another.
    """
    ppo, clip = settings.ppo, settings.ppo.clip
    surrogate, entropy, price, tokens = 0.0, 0.0, 0.0, 0
    assert aims.weights is not None
    for row, sample in enumerate(aims.scored.samples):
        with torch.no_grad():
            p, q = (
                (policy_pass(base, [sample], adapter=adapter).states[0] @ base.head.T).double().log_softmax(-1)
                for adapter in (POLICY, None)
            )
        for t, token in enumerate(sample.response_ids):
            ratio = math.exp(float(p[t, token]) - float(aims.old.logprobs[row, t]))
            a, w = float(aims.estimate.advantages[row, t]), float(aims.weights[row, t])
            if foreseen is not None:  # its surprise is left to the mean over all tokens
                worth = foreseen[tokens]
                mean = float((p[t].exp() * worth).sum())
                a -= (float(worth[token]) - mean) / aims.estimate.unit
                surrogate -= mean / aims.estimate.unit
            surrogate -= w * min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
            entropy -= float((p[t].exp() * p[t]).sum())
            if ppo.kl_estimator == "exact":
                price += float((p[t].exp() * (p[t] - q[t])).sum())
            else:
                r = float(q[t, token] - p[t, token])
                price += math.exp(r) - 1 - r
            tokens += 1
    return (surrogate - ppo.entropy_coefficient * entropy + coefficient / aims.estimate.unit * price) / tokens


@pytest.mark.parametrize("estimator", ["exact", "k3"])
def test_the_policys_loss_is_what_a_slow_loop_makes_of_it(stirred: Base, turns: Sequence[Turn], estimator: str) -> None:
    settings = config(kl_estimator=estimator, kl_in="loss", entropy_coefficient=0.2)
    stirred.adapters.add(CRITIC, 1)
    aims = targets(stirred, turns)
    got = policy_objective(stirred, ROWS, aims, 0.3, settings)
    assert float(got.loss.detach()) == pytest.approx(slow_policy_loss(stirred, aims, settings, 0.3), abs=1e-5)
    # old log-probs are noise around the policy's, so the largest ratio's distance from 1 is known too
    with torch.no_grad():
        drift = (policy_pass(stirred, turns).logprobs - aims.old.logprobs)[got.mask].abs().max()
    assert got.figures["ratio_error"] == pytest.approx(math.exp(float(drift)) - 1, rel=1e-5)


def test_what_is_foreseen_counts_by_its_mean_in_units_of_advantage(stirred: Base, turns: Sequence[Turn]) -> None:
    settings = config(kl_estimator="exact", kl_in="loss")
    stirred.adapters.add(CRITIC, 1)
    places, vocabulary = sum(len(turn.response_ids) for turn in turns), stirred.head.shape[0]
    pools, tables = noise(torch.zeros(places, 2), 8, 1.0), noise(torch.zeros(2, vocabulary), 9, 1.0)
    none = torch.zeros(places, 1)
    aims = replace(targets(stirred, turns), tilt=lambda _turns: Tilt(pools, tables, none.long(), none))
    got = float(policy_objective(stirred, ROWS, aims, 0.3, settings).loss.detach())
    assert got == pytest.approx(slow_policy_loss(stirred, aims, settings, 0.3, pools @ tables), abs=1e-5)
    assert abs(got - slow_policy_loss(stirred, aims, settings, 0.3)) > 0.01


def test_a_sharper_reference_is_the_same_head_on_larger_states(stirred: Base, turns: Sequence[Turn]) -> None:
    settings = config(kl_estimator="exact", kl_in="loss")
    stirred.adapters.add(CRITIC, 1)
    plain = targets(stirred, turns)
    price, tokens = 0.0, 0
    for turn in turns:
        with torch.no_grad():
            p, q = (
                policy_pass(stirred, [turn], adapter=adapter).states[0] @ stirred.head.T for adapter in (POLICY, None)
            )
        dull, sharp, p = q.log_softmax(-1), (1.5 * q).log_softmax(-1), p.log_softmax(-1)
        price += float((p.exp() * (dull - sharp)).sum())
        tokens += len(turn.response_ids)
    one, other = (
        float(policy_objective(stirred, ROWS, aims, 0.3, settings).loss.detach())
        for aims in (plain, replace(plain, sharpening=1.5))
    )
    assert other - one == pytest.approx(0.3 / plain.estimate.unit * price / tokens, rel=1e-3)


@pytest.mark.parametrize("micro", [[[0, 1, 2, 3, 4]], [[0], [1, 2], [3], [4]], [[4], [3], [2, 1], [0]]])
def test_the_largest_ratio_of_a_minibatch_is_found_wherever_it_stands(
    stirred: Base, turns: Sequence[Turn], micro: list[list[int]]
) -> None:
    settings = config(kl_estimator="exact", kl_in="loss")
    stirred.adapters.add(CRITIC, 1)
    aims = targets(stirred, turns)
    weights = stirred.adapters.parameters(POLICY)
    updater = Updater(stirred, (weights, torch.optim.SGD(weights)), None, settings)
    with torch.no_grad():
        drift = (policy_pass(stirred, turns).logprobs - aims.old.logprobs)[aims.scored.mask].abs().max()
    found = updater._accumulate(micro, aims, 0.3)["ratio_error"]
    assert found == pytest.approx(math.exp(float(drift)) - 1, rel=1e-4)


def test_the_value_loss_pulls_by_its_coefficient(stirred: Base, turns: Sequence[Turn]) -> None:
    pulls = []
    for coefficient in (1.0, 0.25):
        settings = config(critic="lora", value_coefficient=coefficient)
        critic = Critic(stirred, WantsTokens(), settings)
        aims = targets(stirred, turns)
        critic.head.calibrate(aims.estimate.critic.states[aims.scored.mask])  # type: ignore[union-attr]
        weights = stirred.adapters.parameters(POLICY)
        Updater(stirred, (weights, torch.optim.SGD(weights)), critic, settings)._accumulate([ROWS], aims, 0.3)
        pulls.append([weight.grad.clone() for weight in (*weights, *critic.head.parameters())])  # type: ignore[union-attr]
        for weight in weights:
            weight.grad = None
    count = len(stirred.adapters.parameters(POLICY))
    for whole, quarter in zip(pulls[0][count:], pulls[1][count:], strict=True):
        assert float(whole.abs().max()) > 0
        torch.testing.assert_close(quarter, 0.25 * whole)
    for whole, same in zip(pulls[0][:count], pulls[1][:count], strict=True):
        torch.testing.assert_close(same, whole)  # the policy's own are not touched by it


def test_sharing_prefixes_changes_neither_the_loss_nor_its_gradient(
    stirred: Base, turns: Sequence[Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(critic="lora", kl_estimator="exact", kl_in="loss", entropy_coefficient=0.1)
    critic = Critic(stirred, WantsTokens(), settings)
    aims = targets(stirred, turns)
    critic.head.calibrate(aims.estimate.critic.states[aims.scored.mask])  # type: ignore[union-attr]

    def run(share: bool) -> tuple[float, list[Tensor]]:
        monkeypatch.setattr(
            "train.base.pack", lambda t, device, run_last=True: pack(t, device, share=share, run_last=run_last)
        )
        loss = whole_loss(stirred, critic, aims, settings)
        return float(loss.detach()), list(torch.autograd.grad(loss, stirred.adapters.parameters(POLICY)))

    (shared, ours), (plain, theirs) = run(True), run(False)
    assert shared == pytest.approx(plain, abs=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_an_end_or_pad_id_inside_an_answer_is_a_real_token() -> None:
    # the default model pads with its end of turn: masks come from lengths, never from ids
    packed = pack([Turn((1, 2), (2, 2, 5)), Turn((2,), (2,))])
    assert packed.response_mask.tolist() == [[True, True, True], [True, False, False]]
    assert packed.prompt_mask.sum(1).tolist() == [2, 1]


def test_gradient_checkpointing_gives_the_same_bits_and_keeps_less(stirred: Base, turns: Sequence[Turn]) -> None:
    settings = config(critic="lora")
    critic = Critic(stirred, WantsTokens(), settings)
    aims = targets(stirred, turns)
    critic.head.calibrate(aims.estimate.critic.states[aims.scored.mask])  # type: ignore[union-attr]
    with torch.no_grad():
        critic.head.weight.fill_(1.0)
    weights = stirred.adapters.parameters(POLICY) + stirred.adapters.parameters(CRITIC)

    def run(sparing: bool) -> tuple[list[Tensor], int]:
        stirred.gradient_checkpointing = sparing
        kept: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = whole_loss(stirred, critic, aims, settings)
        return list(torch.autograd.grad(loss, weights)), sum(kept.values())

    (plain, much), (again, little) = run(False), run(True)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert little < 0.6 * much
