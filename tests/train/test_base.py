"""The packed passes against plain transformers, and adapters against PEFT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.train.conftest import Turn
from train import maths
from train.base import POLICY, Base, fingerprint_of, policy_pass, reference_pass
from train.config import LoraSettings
from train.errors import BaseMismatch, ModelUnusable
from train.heads import score_tokens
from train.lora import digest
from train.packing import groups, pack


def plain_logprobs(model: torch.nn.Module, turn: Turn, temperature: float = 1.0) -> list[float]:
    """One sequence alone through transformers, no padding, no cache."""
    ids = torch.tensor([turn.prompt_ids + turn.response_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0] / temperature
    start = len(turn.prompt_ids)
    return [logits[start - 1 + t].log_softmax(-1)[i].item() for t, i in enumerate(turn.response_ids)]


def test_reference_pass_equals_plain_passes(tiny_model: Path, stirred: Base, turns: Sequence[Turn]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    seen = set()
    for chunk in reference_pass(stirred, turns, (0, 1, 2), temperature=0.7, budget=16):
        for at, row in enumerate(chunk.rows):
            turn = turns[row]
            seen.add(row)
            got = chunk.logprobs[at][chunk.packed.response_mask[at]].tolist()
            assert got == pytest.approx(plain_logprobs(model, turn, 0.7), abs=1e-5)
            whole = torch.tensor([turn.prompt_ids + turn.response_ids])
            with torch.no_grad():
                states = model(input_ids=whole, output_hidden_states=True).hidden_states
            real = chunk.packed.prompt_mask[at] | chunk.packed.sequence_response_mask[at]
            assert chunk.packed.token_ids[at][real].tolist() == whole[0].tolist()
            for layer in (0, 1, 2):
                assert torch.allclose(chunk.hidden[layer][at][real], states[layer][0], atol=1e-5)
    assert seen == set(range(len(turns)))


def test_policy_pass_equals_peft(tiny_model: Path, stirred: Base, turns: Sequence[Turn], tmp_path: Path) -> None:
    stirred.adapters.save(POLICY, tmp_path / "adapter", "tiny")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    got = policy_pass(stirred, turns)
    for row, turn in enumerate(turns):
        assert got.logprobs[row][got.mask[row]].tolist() == pytest.approx(plain_logprobs(peft, turn), abs=1e-5)


def test_a_peft_adapter_is_read(tiny_model: Path, tiny_adapters: tuple[Path, ...], turns: Sequence[Turn]) -> None:
    base = Base.load(tiny_model, LoraSettings(rank=8, alpha=16.0))
    base.adapters.add(POLICY, 0)
    base.adapters.load(POLICY, tiny_adapters[0])
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(tiny_adapters[0])
    )
    got = policy_pass(base, turns[:1])
    assert got.logprobs[0].tolist() == pytest.approx(plain_logprobs(peft, turns[0]), abs=1e-5)


def test_sharing_prefixes_changes_neither_values_nor_gradients(
    stirred: Base, turns: Sequence[Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(share: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        monkeypatch.setattr(
            "train.base.pack", lambda t, device, run_last=True: pack(t, device, share=share, run_last=run_last)
        )
        found = policy_pass(stirred, turns)
        loss = (found.logprobs * torch.arange(1.0, 6.0)).sum()
        return found.logprobs.detach(), list(torch.autograd.grad(loss, stirred.adapters.parameters(POLICY)))

    shared, shared_grads = run(True)
    plain, plain_grads = run(False)
    assert torch.allclose(shared, plain, atol=1e-5)
    for one, other in zip(shared_grads, plain_grads, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_shared_prefixes_are_run_once(turns: Sequence[Turn]) -> None:
    # trunk 4, distinct rests 2 + 1 + 4 + 0, answers 4 + 1 + 2 + 3 + 5
    assert pack(turns).tokens == 4 + 7 + 15
    assert pack(turns, run_last=False).tokens == 4 + 7 + 10
    assert pack(turns, share=False).tokens == sum(len(t.prompt_ids) + len(t.response_ids) for t in turns)


def test_groups_hold_every_turn_once_and_keep_equal_prompts_together(turns: Sequence[Turn]) -> None:
    split = groups(turns, 12)
    assert sorted(row for group in split for row in group) == list(range(len(turns)))
    assert any({0, 2} <= set(group) for group in split)


def _said(prompt: Sequence[int], answer: int) -> Turn:
    return Turn(tuple(prompt), tuple(range(100, 100 + answer)))


def test_groups_count_what_all_prompts_begin_with_once() -> None:
    # trunk 4, two rests of 3, four answers of 5: 30 tokens as they are laid, 48 one by one
    turns = [_said([1, 2, 3, 4, rest, rest, rest], 5) for rest in (7, 7, 8, 8)]
    assert pack(turns).tokens == 30
    assert groups(turns, 30) == [[0, 1, 2, 3]]
    assert groups(turns, 29) == [[0, 1], [2, 3]]


def test_groups_are_even_and_none_is_over_the_budget() -> None:
    turns = [_said([1, 2, rest, rest], 8) for rest in range(10, 16)]  # trunk 2 and 10 a turn: 62 tokens
    split = groups(turns, 50)
    assert [len(group) for group in split] == [3, 3], "not four and a remainder of two"
    assert [pack([turns[row] for row in group]).tokens for group in split] == [32, 32]
    assert [len(group) for group in groups(turns, 12)] == [1] * 6
    assert groups([_said([1], 99)], 50) == [[0]], "a turn longer than the budget goes alone"


def test_with_a_fresh_adapter_the_policy_is_the_reference_to_the_bit(base: Base, turns: Sequence[Turn]) -> None:
    policy = policy_pass(base, turns)
    bare = policy_pass(base, turns, adapter=None)
    assert torch.equal(policy.logprobs, bare.logprobs)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("with_reference", [False, True])
def test_token_scores_and_their_gradient_equal_the_full_softmax(entropy_grad: bool, with_reference: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    other = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    ids = torch.randint(50, (300,), generator=generator)
    up = torch.randn(3, 300, generator=generator).double()
    ours, full = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    reference = other if with_reference else None
    got = score_tokens(ours, weight, ids, 0.7, entropy_grad=entropy_grad, reference=reference)
    logits = (full @ weight.T)[None]
    expected, entropy = maths.token_logprobs(logits, ids[None], 0.7)[0], maths.entropy(logits, 0.7)[0]
    log_p, log_q = (logits[0] / 0.7).log_softmax(-1), (other @ weight.T / 0.7).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1) if with_reference else torch.zeros(300, dtype=torch.float64)
    assert torch.allclose(got.logprobs.float(), expected, atol=1e-5)
    assert torch.allclose(got.entropy.float(), entropy, atol=1e-5)
    assert torch.allclose(got.kl, kl, atol=1e-9)
    (got.logprobs @ up[0] + (got.entropy @ up[1] if entropy_grad else 0) + (got.kl @ up[2])).backward()
    (expected.double() @ up[0] + (entropy.double() @ up[1] if entropy_grad else 0) + (kl @ up[2])).backward()
    assert torch.allclose(ours.grad, full.grad, atol=1e-4)  # type: ignore[arg-type]


def test_a_saved_adapter_comes_back_bit_by_bit(stirred: Base, tmp_path: Path) -> None:
    before = digest(stirred.adapters.state(POLICY))
    stirred.adapters.save(POLICY, tmp_path, "tiny")
    stirred.adapters.add("other", 3)
    assert digest(stirred.adapters.state("other")) != before
    stirred.adapters.load("other", tmp_path)
    assert digest(stirred.adapters.state("other")) == before


def test_an_adapter_of_another_rank_is_refused(stirred: Base, tiny_adapters: tuple[Path, ...]) -> None:
    with pytest.raises(BaseMismatch, match="rank 8"):
        stirred.adapters.load(POLICY, tiny_adapters[0])


def test_the_fingerprint_follows_weights_and_architecture_but_not_names(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    weights = (tiny_model / "model.safetensors").read_bytes()

    def copy(name: str, changed: dict[str, object], tail: bytes = b"") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | changed))
        (folder / "model.safetensors").write_bytes(weights + tail)
        return fingerprint_of(folder)

    same = fingerprint_of(tiny_model)
    assert copy("a", {"_name_or_path": "elsewhere", "transformers_version": "9"}) == same
    assert copy("b", {"rms_norm_eps": 0.1}) != same
    assert copy("c", {}, b"x") != same


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=str(tmp_path)):
        Base.load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_a_short_question_cannot_show_is_refused_by_name(
    tiny_model: Path, tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    (tmp_path / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    with pytest.raises(ModelUnusable, match=named):
        Base.load(tmp_path)
