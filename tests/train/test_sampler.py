"""The local sampler: its log-probs are the trainer's, its bits are the seed's, its draws follow the distribution."""

from __future__ import annotations

import math

import pytest
import torch

from train import kernels
from train.base import POLICY, Base, policy_pass
from train.sampler import LocalRollouts

PROMPTS = [(1, 20, 30, 40, 50), (1, 20, 31), (1, 20, 30, 40, 50, 60, 61, 62)]


def test_recorded_logprobs_and_states_are_those_of_the_trainers_pass(stirred: Base) -> None:
    samples = LocalRollouts(stirred).generate(PROMPTS, 4, max_tokens=12, temperature=0.8, seed=3)
    with torch.no_grad():
        found = policy_pass(stirred, samples, temperature=0.8)
    for row, sample in enumerate(samples):
        assert list(sample.logprobs) == pytest.approx(found.logprobs[row][found.mask[row]].tolist(), abs=2e-5)
        assert sample.states is not None
        assert torch.allclose(sample.states, found.states[row][found.mask[row]], atol=1e-4)


def test_answers_come_prompt_by_prompt_and_end_at_the_end_of_turn_or_the_limit(stirred: Base) -> None:
    samples = LocalRollouts(stirred).generate(PROMPTS, 40, max_tokens=30, temperature=1.5, seed=0)
    assert [sample.prompt_ids for sample in samples] == [prompt for prompt in PROMPTS for _ in range(40)]
    (eos,) = stirred.eos_ids
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert eos not in sample.response_ids[:-1]
        assert len(sample.response_ids) == len(sample.logprobs)
        if sample.finish_reason == "stop":
            assert sample.response_ids[-1] == eos
        else:
            assert len(sample.response_ids) == 30
            assert sample.response_ids[-1] != eos


def test_equal_seeds_give_equal_bits_and_others_do_not(stirred: Base) -> None:
    rollouts = LocalRollouts(stirred)
    one = rollouts.generate(PROMPTS, 3, max_tokens=10, temperature=1.0, seed=5)
    assert rollouts.generate(PROMPTS, 3, max_tokens=10, temperature=1.0, seed=5) == one
    assert rollouts.generate(PROMPTS, 3, max_tokens=10, temperature=1.0, seed=6) != one


def test_the_batch_size_does_not_change_what_is_said(stirred: Base) -> None:
    whole = LocalRollouts(stirred, batch=64).generate(PROMPTS, 5, max_tokens=20, temperature=1.2, seed=1)
    cut = LocalRollouts(stirred, batch=4).generate(PROMPTS, 5, max_tokens=20, temperature=1.2, seed=1)
    assert [sample.response_ids for sample in cut] == [sample.response_ids for sample in whole]


def test_draws_follow_the_distribution(stirred: Base) -> None:
    count = 4000
    samples = LocalRollouts(stirred, batch=1000).generate(PROMPTS[:1], count, max_tokens=1, temperature=1.0, seed=2)
    first = [sample.response_ids[0] for sample in samples]
    for token in {first[0], first[1], first[2]}:
        p = math.exp(next(s.logprobs[0] for s in samples if s.response_ids[0] == token))
        deviation = math.sqrt(p * (1 - p) / count)
        assert abs(first.count(token) / count - p) < 4 * deviation


def test_every_merged_weight_is_laid_out_once_a_call(stirred: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def laid_out(weight: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return kernels.laid_out(weight)

    monkeypatch.setattr("train.lora.laid_out", laid_out)
    LocalRollouts(stirred).generate(PROMPTS, 1, max_tokens=3, temperature=1.0, seed=0)
    assert seen == [tuple(layer.weight.shape) for layer in stirred.adapters.layers.values()]


def test_sampling_leaves_no_merged_weight_behind(stirred: Base) -> None:
    LocalRollouts(stirred).generate(PROMPTS[:1], 1, max_tokens=2, temperature=1.0, seed=0)
    assert all(layer.merged is None and layer.active is None for layer in stirred.adapters.layers.values())


def test_the_bare_base_can_be_sampled(stirred: Base) -> None:
    samples = LocalRollouts(stirred, adapter=None).generate(PROMPTS, 2, max_tokens=6, temperature=1.0, seed=0)
    LocalRollouts(stirred).generate(PROMPTS, 2, max_tokens=6, temperature=1.0, seed=0)
    with torch.no_grad():
        bare = policy_pass(stirred, samples, adapter=None)
        policy = policy_pass(stirred, samples, adapter=POLICY)
    recorded = [x for sample in samples for x in sample.logprobs]
    assert recorded == pytest.approx(bare.logprobs[bare.mask].tolist(), abs=2e-5)
    assert recorded != pytest.approx(policy.logprobs[policy.mask].tolist(), abs=1e-2)


def test_bfloat16_weights_stay_near(stirred: Base) -> None:
    samples = LocalRollouts(stirred, dtype="bfloat16").generate(PROMPTS, 2, max_tokens=6, temperature=1.0, seed=0)
    with torch.no_grad():
        exact = policy_pass(stirred, samples)
    recorded = torch.tensor([x for sample in samples for x in sample.logprobs])
    assert (recorded - exact.logprobs[exact.mask]).abs().mean() < 0.05
