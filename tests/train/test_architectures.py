"""Bases of other families than the tests' Llama: computed as transformers, PEFT and a plain decoder do, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deploy.config import HustingsConfig
from deploy.doctor import check_training
from tests.train.conftest import Turn
from tests.train.families import make
from tests.train.test_base import plain_logprobs
from train.base import POLICY, Base, policy_pass, reference_pass
from train.config import LoraSettings
from train.errors import ModelUnusable
from train.sampler import LocalRollouts

WINDOW = 4
"""Of the layers with a sliding window: shorter than every question."""
QUESTIONS = (
    Turn((1, 5, 9, 20, 30), (40, 41, 42, 43)),
    Turn((1, 5, 9, 22), (50, 51)),
    Turn((1, 5, 9, 20, 30), (60, 61, 62, 63, 64)),
    Turn((1, 5, 11, 12, 13, 14, 15), (7, 8, 9)),
)
TRAINED: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen2": ({}, 7),
    "Qwen3": ({"head_dim": 32}, 7),
    "Mistral": ({"sliding_window": WINDOW}, 7),
    "Gemma3": ({"head_dim": 32, "sliding_window": WINDOW, "_sliding_window_pattern": 2}, 7),
    "Phi3": ({}, 4),
    "Olmo2": ({}, 7),
    "SmolLM3": ({}, 7),
}
"""Family, what differs from the common settings, and how many linear layers a block has: all are to be trained."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Phi": ({}, "log-probs that differ"),  # a bias on its head
    "Granite": ({"logits_scaling": 8.0}, "log-probs that differ"),
    "GptOss": ({"head_dim": 32, "num_local_experts": 2, "num_experts_per_tok": 1}, "log-probs that differ"),  # sinks
    "Gemma2": ({"head_dim": 32}, "attn_logit_softcapping"),
    "GPT2": ({}, "GPT2LMHeadModel) is built in another way"),
    "StableLm": ({}, "StableLmForCausalLM) is built in another way"),
    "Falcon": ({}, "its own attention"),
}


@pytest.fixture(scope="module", params=TRAINED)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    """A base of each family with an adapter that does change its answers, and the adapter's folder."""
    settings, layers = TRAINED[request.param]
    folder = make(request.param, settings, tmp_path_factory.mktemp(request.param))
    base = Base.load(folder, LoraSettings(rank=4, alpha=8.0))
    assert len(base.adapters.layers) == 4 * layers
    base.adapters.add(POLICY, 0)
    generator = torch.Generator().manual_seed(1)
    state = base.adapters.state(POLICY)
    base.adapters.load_state(POLICY, {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in state.items()})
    base.adapters.save(POLICY, folder / "adapter", "tiny")
    listed = json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert set(listed) == {path.rsplit(".", 1)[-1] for path in base.adapters.layers}, "no layer that isn't there"
    return base, folder


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_reference_is_what_transformers_computes(other: tuple[Base, Path]) -> None:
    base, folder = other
    model = plain(folder)
    for chunk in reference_pass(base, QUESTIONS, (0, 2), budget=16):
        for at, row in enumerate(chunk.rows):
            found = chunk.logprobs[at][chunk.packed.response_mask[at]].tolist()
            assert found == pytest.approx(plain_logprobs(model, QUESTIONS[row]), abs=2e-5)
            ids = chunk.packed.token_ids[at]
            torch.testing.assert_close(chunk.hidden[0][at], base.embeddings[ids])


def test_the_policy_is_what_peft_computes_and_every_layer_learns(other: tuple[Base, Path]) -> None:
    base, folder = other
    model = PeftModel.from_pretrained(plain(folder), str(folder / "adapter"))
    found = policy_pass(base, QUESTIONS)
    for row, turn in enumerate(QUESTIONS):
        assert found.logprobs[row][found.mask[row]].tolist() == pytest.approx(plain_logprobs(model, turn), abs=2e-5)
    bare = policy_pass(base, QUESTIONS, adapter=None)
    assert float((bare.logprobs - found.logprobs).detach().abs().max()) > 0.1
    gradients = torch.autograd.grad(found.logprobs.sum(), base.adapters.parameters(POLICY))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_the_sampler_says_what_its_log_probs_say(other: tuple[Base, Path]) -> None:
    base, folder = other
    model = PeftModel.from_pretrained(plain(folder), str(folder / "adapter"))
    prompts = [turn.prompt_ids for turn in QUESTIONS]
    for sample in LocalRollouts(base).generate(prompts, 2, max_tokens=10, temperature=1.0, seed=3):
        assert len(sample.response_ids) > WINDOW or sample.finish_reason == "stop"
        assert list(sample.logprobs) == pytest.approx(plain_logprobs(model, sample), abs=2e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_what_would_be_computed_wrongly_is_refused_in_one_line(family: str, tmp_path: Path) -> None:
    settings, reason = REFUSED[family]
    with pytest.raises(ModelUnusable, match="give a model of a kind that it trains: Llama, Qwen") as refused:
        Base.load(make(family, settings, tmp_path))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_doctor_tries_the_base_before_anybody_votes(tiny_model: Path, tmp_path: Path) -> None:
    (fine,) = check_training(HustingsConfig(model=str(tiny_model)))
    assert fine.verdict == "ok"
    (wrong,) = check_training(HustingsConfig(model=str(make("Phi", {}, tmp_path))))
    assert wrong.verdict == "not ok"
    assert "log-probs that differ" in wrong.text
    assert list(check_training(HustingsConfig(model="some/hub-id"))) == []
