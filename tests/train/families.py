"""Tiny models of other families than Llama."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM


def make(family: str, settings: dict[str, Any], folder: Path, tokenizer_of: Path | None = None) -> Path:
    """A random model of four layers: norms and biases are stirred too, so that no forgotten one goes unseen.

    Args:
        family: as its class is named in transformers.
        settings: other than the common ones.
        folder: is made.
        tokenizer_of: another model's folder.
    """
    config = (getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config"))(
        **{
            "vocab_size": 96,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "initializer_range": 0.15,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        | settings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    for file in tokenizer_of.glob("tokenizer*") if tokenizer_of else ():
        shutil.copy(file, folder)
    return folder
