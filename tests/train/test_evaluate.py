"""A policy beside the base: figures of both sides against plain passes over the same answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.train.tiny_ppo import PROMPTS
from train.base import Base, policy_pass
from train.evaluate import Evaluation, evaluate


@dataclass(frozen=True)
class Says:
    """Pays the same for every answer token, but more for some."""

    layers: tuple[int, ...] = (0,)
    more: float = 0.0

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        return torch.where(response_mask, self.more * (token_ids % 8 == 5), 0.0)


def evaluated(base: Base, reward: Says) -> Evaluation:
    settings = {"max_tokens": 6, "temperature": 1.0, "seed": 3, "budget": 512}
    return evaluate(base, reward, PROMPTS, **settings)  # type: ignore[arg-type]


def test_the_same_policy_on_both_sides_wins_half(base: Base) -> None:
    found = evaluated(base, Says(more=1.0))
    assert found.win_rate == 0.5
    assert [s.response_ids for s in found.after.samples] == [s.response_ids for s in found.before.samples]
    assert found.after.kl == pytest.approx(0.0, abs=1e-4)


def test_each_sides_figures_are_those_of_its_answers(stirred: Base) -> None:
    found = evaluated(stirred, Says(more=2.0))
    sides = (found.before, found.after)
    assert [s.response_ids for s in found.after.samples] != [s.response_ids for s in found.before.samples]
    for side, adapter in zip(sides, (None, "policy"), strict=True):
        assert [sample.prompt_ids for sample in side.samples] == PROMPTS
        worth = [2.0 * sum(token % 8 == 5 for token in sample.response_ids) for sample in side.samples]
        assert list(side.scores) == pytest.approx(worth)
        assert side.reward == pytest.approx(sum(worth) / len(worth))
        lengths = [len(sample.response_ids) for sample in side.samples]
        assert side.length == pytest.approx(sum(lengths) / len(lengths))
        with torch.no_grad():
            own, bare = (policy_pass(stirred, side.samples, adapter=name) for name in (adapter, None))
        assert side.perplexity == pytest.approx(math.exp(-float(bare.logprobs[bare.mask].mean())), rel=1e-3)
        nats = torch.where(own.mask, own.logprobs - bare.logprobs, 0.0).sum(1).mean()
        assert side.kl == pytest.approx(float(nats), abs=1e-3)
    assert abs(found.after.kl) > 0.1  # its sign can be told
    wins = sum((a > b) + 0.5 * (a == b) for b, a in zip(*(side.scores for side in sides), strict=True))
    assert found.win_rate == wins / len(PROMPTS)
