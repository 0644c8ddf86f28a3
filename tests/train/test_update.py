"""What ends an update before it takes a step: a first ratio that is not 1, an approximate KL past its bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.conftest import Turn
from tests.train.tiny_ppo import config
from train import base as bases
from train.advantage import Estimate
from train.base import POLICY, Base
from train.config import LoraSettings, TrainConfig
from train.errors import TrainingDiverged
from train.experience import Old, Scored
from train.rollout import Sample
from train.update import Targets, UpdateFigures, Updater

MINIBATCH = [[0, 1], [2, 3, 4]]


def moved_base(folder: Path, dtype: str) -> Base:
    base = Base.load(folder, LoraSettings(rank=4, alpha=8.0), dtype=dtype)
    base.adapters.add(POLICY, seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in base.adapters.parameters(POLICY):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return base


def update(
    base: Base, turns: Sequence[Turn], shift: Tensor, settings: TrainConfig, *, exact: bool, steps: int = 1
) -> UpdateFigures:
    """`steps` minibatches of the same rows, whose old log-probs are the policy's own less `shift`."""
    samples = [Sample(t.prompt_ids, t.response_ids, (0.0,) * len(t.response_ids), "length") for t in turns]
    longest = max(len(t.response_ids) for t in turns)
    logprobs = torch.zeros(len(turns), longest)
    mask = torch.zeros(logprobs.shape, dtype=torch.bool)
    for rows in MINIBATCH:  # as the update lays them, so that nothing is rounded otherwise
        with torch.no_grad():
            found = bases.policy_pass(base, [samples[row] for row in rows])
        logprobs[rows, : found.mask.shape[1]] = found.logprobs
        mask[rows, : found.mask.shape[1]] = found.mask
    old = torch.where(mask, logprobs - shift, 0.0)
    states = torch.zeros((*mask.shape, base.width))
    scored = Scored(samples, mask, old, logprobs, states, logprobs, logprobs.sum(1))
    aims = Targets(scored, Old(old, states), Estimate(torch.where(mask, 1.0, 0.0)))
    weights = base.adapters.parameters(POLICY)
    updater = Updater(base, (weights, torch.optim.SGD(weights, lr=1e-3)), None, settings)
    return updater.run([[MINIBATCH] * steps], aims, exact=exact, coefficient=0.0, step_done=lambda _: None)


def at_one_token(turns: Sequence[Turn], drift: float) -> Tensor:
    """(B, T), `drift` at the fourth answer's second token and 0 elsewhere."""
    shift = torch.zeros(len(turns), max(len(turn.response_ids) for turn in turns))
    shift[3, 1] = drift
    return shift


BOUNDS = [
    # a pass of the trainer with a half-precision base, whatever the sampler's weights are
    ("bfloat16", "float32", True, 0.1),
    ("bfloat16", "bfloat16", True, 0.1),
    ("float16", "float32", True, 0.1),
    # a pass of the trainer in float32: the same bits
    ("float32", "float32", True, 0.0),
    ("float32", "bfloat16", True, 0.0),
    # the local sampler's record, by the type of its weights
    ("float32", "float32", False, 1e-3),
    ("float32", "bfloat16", False, 1.0),
]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("dtype", "sampler", "exact", "bound"), BOUNDS)
def test_one_token_within_the_tolerance_passes_and_one_just_beyond_ends_the_run(
    tiny_model: Path, turns: Sequence[Turn], dtype: str, sampler: str, exact: bool, bound: float, sign: int
) -> None:
    """The ratio at one token is off by 1% of the bound less, then by 1% more; either way it is as far from 1."""
    settings = config(kl_estimator="k3")
    settings = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"dtype": sampler})})
    base = moved_base(tiny_model, dtype)
    before = [weight.detach().clone() for weight in base.adapters.parameters(POLICY)]
    beyond = math.log1p(1.01 * bound) if bound else 1e-5
    with pytest.raises(TrainingDiverged, match=rf"off by .* before any update \(at most {bound:g}\): sampler"):
        update(base, turns, at_one_token(turns, sign * beyond), settings, exact=exact)
    after = base.adapters.parameters(POLICY)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for weight in after:
        weight.grad = None
    found = update(base, turns, at_one_token(turns, sign * math.log1p(0.99 * bound)), settings, exact=exact)
    assert found.updates == 1
    assert found.first_ratio_error == pytest.approx(0.99 * bound, rel=2e-3)
