"""The tests' model is a real one: templates, tokens and adapters behave as those of a big one."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


def test_the_chat_template_makes_a_prompt_that_decodes_to_itself(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    messages = [{"role": "user", "content": "the garden: grün €"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    wanted = "<|im_start|>user\nthe garden: grün €<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == wanted
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert max(ids) < len(tokenizer) <= 320


def test_adapters_change_the_answers_and_differ_from_each_other(
    tiny_model: Path, tiny_adapters: tuple[Path, ...]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 9, 30, 77, 120]])
    seen = [AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits]
    for folder in tiny_adapters:
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        seen.append(PeftModel.from_pretrained(base, str(folder)).eval()(ids).logits)
    for at, first in enumerate(seen):
        for second in seen[at + 1 :]:
            assert (first - second).abs().max() > 0.1
