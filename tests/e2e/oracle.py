"""What a checkpoint on disk says of some tokens, by plain Hugging Face and PEFT: nothing of ours is in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _model(base: Path, adapter: Path | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def logprobs(base: Path, adapter: Path | None, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
    """Natural-log probability of each response token at temperature 1."""
    import torch

    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = _model(base, adapter)(ids).logits[0].log_softmax(-1)
    rows = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return [float(logits[row, token]) for row, token in zip(rows, response, strict=True)]


def furthest(
    base: Path, adapter: Path | None, prompt: Sequence[int], response: Sequence[int], seen: Sequence[float]
) -> float:
    """Largest difference between what was seen and what the checkpoint says, nats."""
    truth = logprobs(base, adapter, prompt, response)
    return max(abs(a - b) for a, b in zip(truth, seen, strict=True))
