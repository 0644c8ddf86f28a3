"""Serving is started with a published whole model: vLLM says of it what the trainer said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from serve.config import ServeConfig
from train.base import POLICY, Base
from train.config import LoraSettings
from train.evaluate import make_probes
from train.full import FullPolicy, publish_policy
from train.full_publish import verify
from train.sampler import LocalRollouts

pytestmark = pytest.mark.slow


def published(model: Path, folder: Path) -> Path:
    """A whole policy that is not its base, published."""
    base = Base.load(model, LoraSettings(rank=4), tuning="full")
    policy = base.adapters
    assert isinstance(policy, FullPolicy)
    policy.add(POLICY, 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters(POLICY):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.03)
    answers = LocalRollouts(base).generate([(1, 20, 30), (1, 20, 31, 41)], 1, max_tokens=12, temperature=1.0, seed=2)
    probes = make_probes(base, answers)
    lineage = {"reward_model": "reward-x", "snapshot": "s", "probes": probes, "config": {}, "metrics": {}}
    return publish_policy(policy, folder, "full-000001", base.path, base.fingerprint, **lineage)  # type: ignore[arg-type]


async def test_vllm_serves_a_published_checkpoint_as_the_trainer_measured_it(tiny_model: Path, tmp_path: Path) -> None:
    from serve.engines.vllm_inprocess import VllmEngine

    folder = published(tiny_model, tmp_path)
    manifest = verify(folder)
    config = ServeConfig(max_model_len=256, max_num_seqs=4, reserved_seqs=1, max_loras=2, kv_cache_gib=0.0625)
    engine = VllmEngine(str(folder), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' imports
        await engine.start()
    try:
        for probe in manifest.probes:
            ids = (*probe.prompt_token_ids, *probe.response_token_ids)
            found = (await engine.score(ids, None))[len(probe.prompt_token_ids) - 1 :]
            assert found == pytest.approx(probe.policy_logprobs, abs=2e-3)
            assert found != pytest.approx(probe.base_logprobs, abs=0.05)
    finally:
        await engine.close()
