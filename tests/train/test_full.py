"""Full fine-tuning: the policy as a whole model, and the checkpoint that it ends in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from feedback.contracts import CheckpointManifest, ProbeRecord
from feedback.fingerprint import base_fingerprint
from tests.train.conftest import Turn
from tests.train.test_ppo import config, train
from train import full_publish
from train.base import POLICY, Base, policy_pass, reference_pass
from train.config import LoraSettings, TrainConfig
from train.errors import BaseMismatch, CheckpointUnusable
from train.full import FullPolicy, publish_policy
from train.heads import score_tokens
from train.sampler import LocalRollouts

PROBE = ProbeRecord(prompt_token_ids=(1,), response_token_ids=(2,), policy_logprobs=(-1.0,), base_logprobs=(-2.0,))


@pytest.fixture
def whole(tiny_model: Path) -> Base:
    """The tiny model with a whole policy that equals it."""
    base = Base.load(tiny_model, LoraSettings(rank=4, alpha=8.0), tuning="full")
    base.adapters.add(POLICY, seed=0)
    return base


def stir(base: Base) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in base.adapters.parameters(POLICY):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)


def test_a_fresh_whole_policy_is_the_base_and_all_its_weights_learn(whole: Base, turns: Sequence[Turn]) -> None:
    assert whole.adapters.untouched(POLICY)
    found = policy_pass(whole, turns)
    bare = policy_pass(whole, turns, adapter=None)
    assert torch.allclose(found.logprobs, bare.logprobs, atol=1e-5)
    found.logprobs.sum().backward()
    assert all(weight.grad is not None for weight in whole.adapters.parameters(POLICY))
    stir(whole)
    assert not whole.adapters.untouched(POLICY)
    assert not torch.allclose(policy_pass(whole, turns).logprobs, bare.logprobs, atol=1e-2)
    assert torch.equal(policy_pass(whole, turns, adapter=None).logprobs, bare.logprobs)  # the reference never moves


def test_gradients_of_a_whole_policy_equal_those_of_the_plain_model(
    tiny_model: Path, whole: Base, turns: Sequence[Turn]
) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    loss = torch.zeros(())
    for turn in turns:
        logits = plain(torch.tensor([turn.prompt_ids + turn.response_ids])).logits[0] / 0.7
        at = slice(len(turn.prompt_ids) - 1, len(turn.prompt_ids) + len(turn.response_ids) - 1)
        loss = loss + logits[at].log_softmax(-1).gather(1, torch.tensor(turn.response_ids)[:, None]).sum()
    loss.backward()
    policy_pass(whole, turns, temperature=0.7).logprobs.sum().backward()
    names = [name for name, _ in plain.named_parameters()]
    for name, weight, mine in zip(names, plain.parameters(), whole.adapters.parameters(POLICY), strict=True):
        assert torch.allclose(weight.grad, mine.grad, atol=2e-4, rtol=1e-3), name


def test_a_trained_heads_scores_and_gradients_pass_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, reference, frozen = drawn(5, 4), drawn(7, 4), drawn(5, 4), drawn(7, 4)
    ids = torch.tensor([0, 6, 3, 2, 2])
    hidden.requires_grad_(True)
    weight.requires_grad_(True)

    def work(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        scores = score_tokens(states, head, ids, 0.7, entropy_grad=True, reference=reference, reference_weight=frozen)
        return torch.stack((scores.logprobs, scores.entropy, scores.kl)).double()

    # the scores are float32 on purpose, so the step is wide
    assert torch.autograd.gradcheck(work, (hidden, weight), eps=1e-2, atol=2e-3, rtol=1e-2)
    logp = (hidden @ weight.T / 0.7).log_softmax(-1)
    logq = (reference @ frozen.T / 0.7).log_softmax(-1)
    by_hand = torch.stack((logp[range(5), ids], -(logp.exp() * logp).sum(-1), (logp.exp() * (logp - logq)).sum(-1)))
    assert torch.allclose(work(hidden, weight), by_hand, atol=1e-5)


def test_the_sampler_draws_from_the_whole_policy(whole: Base) -> None:
    stir(whole)
    drawn = LocalRollouts(whole).generate([(1, 20, 30)], 4, max_tokens=4, temperature=1.0, seed=1)
    found = policy_pass(whole, drawn)
    for row, sample in enumerate(drawn):
        assert found.logprobs[row][found.mask[row]].tolist() == pytest.approx(sample.logprobs, abs=1e-4)
    assert torch.equal(whole.head, whole.reference_head)  # the sampler has switched back


def full_config(**ppo: object) -> TrainConfig:
    settings = config(**ppo).model_dump()
    return TrainConfig.model_validate({**settings, "tuning": "full", "full": {"learning_rate": 1e-3}})


def test_ppo_trains_a_whole_policy_and_resumes_it(whole: Base, tiny_model: Path, tmp_path: Path) -> None:
    result = train(whole, tmp_path / "run", full_config(iterations=4))
    assert result.metrics[-1].score > result.metrics[0].score + 0.5
    assert result.metrics[0].first_ratio_error < 1e-4
    again = Base.load(tiny_model, LoraSettings(rank=4, alpha=8.0), tuning="full")
    again.adapters.add(POLICY, 0)
    resumed = train(again, tmp_path / "run", full_config(iterations=4))
    assert resumed.chosen == result.chosen
    for one, other in zip(again.adapters.parameters(POLICY), whole.adapters.parameters(POLICY), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_base_is_refused(whole: Base) -> None:
    state = whole.adapters.state(POLICY)
    with pytest.raises(BaseMismatch, match="does not fit"):
        whole.adapters.load_state(POLICY, {**state, "model.norm.weight": torch.zeros(3)})
    del state["model.norm.weight"]
    with pytest.raises(BaseMismatch, match=r"model\.norm\.weight"):
        whole.adapters.load_state(POLICY, state)


@pytest.mark.parametrize(("key", "value"), [("rollout.source", "serving"), ("schedule.start_from", "incumbent")])
def test_what_a_whole_policy_cannot_do_is_said_at_once(key: str, value: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ValueError, match=f'train.tuning = "full".*train.{key}'):
        TrainConfig.model_validate({"tuning": "full", section: {name: value}})


def publish(base: Base, folder: Path) -> Path:
    assert isinstance(base.adapters, FullPolicy)
    return publish_policy(
        base.adapters,
        folder,
        "full-000001",
        base.path,
        base.fingerprint,
        reward_model="reward-x",
        snapshot="s",
        probes=(PROBE,),
        config={},
        metrics={"policy_kl": 1.0},
    )


def test_a_published_checkpoint_is_a_model_that_transformers_loads(
    whole: Base, turns: Sequence[Turn], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stir(whole)
    folder = publish(whole, tmp_path)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turn = turns[0]
    with torch.no_grad():
        logits = plain(torch.tensor([turn.prompt_ids + turn.response_ids])).logits[0]
        mine = policy_pass(whole, [turn]).logprobs[0]
    at = slice(len(turn.prompt_ids) - 1, -1)
    theirs = logits[at].log_softmax(-1).gather(1, torch.tensor(turn.response_ids)[:, None])[:, 0]
    assert torch.allclose(mine, theirs, atol=1e-4)
    manifest = full_publish.verify(folder)
    assert manifest.fingerprint == base_fingerprint(folder) != whole.fingerprint == manifest.base_fingerprint
    again = Base.load(folder, LoraSettings())  # and the trainer takes it for a base
    assert again.fingerprint == manifest.fingerprint


def test_a_checkpoint_that_was_changed_is_not_verified(whole: Base, tmp_path: Path) -> None:
    folder = publish(whole, tmp_path)
    content = (folder / "config.json").read_text()
    (folder / "config.json").write_text(content + " ")
    with pytest.raises(CheckpointUnusable, match="was changed"):
        full_publish.verify(folder)
    (folder / "config.json").write_text(content)
    (folder / "extra.bin").write_text("x")
    with pytest.raises(CheckpointUnusable, match="not in the manifest"):
        full_publish.verify(folder)
    (folder / "extra.bin").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointUnusable, match="is missing"):
        full_publish.verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointUnusable, match="no manifest"):
        full_publish.verify(folder)


def test_publishing_is_whole_or_not_at_all_and_never_twice(
    whole: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(full_publish, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            publish(whole, tmp_path)
    assert list(tmp_path.iterdir()) == []
    first = publish(whole, tmp_path)
    manifest = (first / "manifest.json").read_bytes()
    stir(whole)
    assert (publish(whole, tmp_path) / "manifest.json").read_bytes() == manifest
    assert full_publish.next_checkpoint(tmp_path, ["policy-000009", "full-000004"]) == "full-000005"
    assert json.loads(manifest)["name"] == CheckpointManifest.model_validate_json(manifest).name


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_base_in_half_precision_trains_with_float32_weights(tiny_model: Path, tmp_path: Path, tuning: str) -> None:
    """What a GPU does, on a CPU: the base and the products in bfloat16, what is trained in float32."""
    settings = full_config(iterations=2) if tuning == "full" else config(iterations=2)
    base = Base.load(tiny_model, settings.lora, dtype="bfloat16", tuning=settings.tuning)
    base.adapters.add(POLICY, 0)
    assert base.dtype == torch.bfloat16
    assert {weight.dtype for weight in base.adapters.parameters(POLICY)} == {torch.float32}
    result = train(base, tmp_path, settings)
    assert result.metrics[0].first_ratio_error < 0.1
    assert result.metrics[0].updates > 0
    chunk = next(iter(reference_pass(base, list(result.after))))
    assert chunk.states.dtype == torch.bfloat16
