"""A random two-layer Llama with a small tokenizer, saved as a Hugging Face folder, and LoRA adapters for it.

vLLM serves it and the trainer trains it in seconds; its answers are noise, its log-probabilities are exact.
"""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if quick %}at once: {% endif %}{% endif %}"
)
CORPUS = (
    "a good answer is short and warm. the question is about the river, the city, the garden and the weather. "
    "thank you, that is kind of you! what do you think? i think that it is a bad idea. yes. no. maybe."
)


def make_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    pad_is_eos: bool = False,
    layers: int = 2,
    hidden: int = 64,
    max_positions: int = 512,
    spread: float = 0.15,
) -> Path:
    """Write the model into `folder` and return it.

    Args:
        pad_is_eos: give the tokenizer no pad token of its own (as the default chat model has it).
        spread: standard deviation of the weights; 0.02 would make every distribution nearly uniform.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(pad_is_eos)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,  # vLLM on a CPU takes heads of 32 dimensions and more
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=max_positions,
        initializer_range=spread,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_adapter(model: Path, folder: Path, *, seed: int = 1, rank: int = 8, scale: float = 0.1) -> Path:
    """Write a PEFT LoRA adapter for `model`: every linear layer, no weight zero, so it does change the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0)
    peft_model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(peft_model.named_parameters()):
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    peft_model.save_pretrained(str(folder), safe_serialization=True)
    _portable(folder / "adapter_config.json")
    return folder


def _tokenizer(pad_is_eos: bool):  # type: ignore[no-untyped-def]  # transformers is untyped
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=304,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    core.train_from_iterator([CORPUS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>" if pad_is_eos else "<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _portable(config: Path) -> None:
    """PEFT notes the base's path; a test's adapter should not depend on where it was made."""
    content = json.loads(config.read_text())
    content["base_model_name_or_path"] = "tiny"
    config.write_text(json.dumps(content, indent=2))
