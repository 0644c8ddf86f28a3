"""A tiny model and adapters for it, each with the probe that its trainer would have written down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedback.contracts import ProbeRecord
from feedback.fingerprint import base_fingerprint
from tests.tiny_model import make_tiny_adapter, make_tiny_model

SETS = 4
RANK = 8
PROMPT = (5, 9, 12, 30, 41, 7)
ANSWER = (17, 60, 99, 23, 150, 8, 77, 31)


@dataclass(frozen=True, slots=True)
class Speaker:
    """One set of weights."""

    folder: Path
    rank: int
    probe: ProbeRecord


def make_speakers(folder: Path) -> tuple[Path, list[Speaker], str]:
    """The model's folder, its adapters, and its fingerprint."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = make_tiny_model(folder / "model")
    speakers = []
    for seed in range(1, SETS + 1):
        adapter = make_tiny_adapter(model, folder / f"lora-{seed}", seed=seed, rank=RANK)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        bare = _logprobs(base)
        probe = ProbeRecord(
            prompt_token_ids=PROMPT,
            response_token_ids=ANSWER,
            policy_logprobs=_logprobs(PeftModel.from_pretrained(base, str(adapter))),
            base_logprobs=bare,
        )
        speakers.append(Speaker(adapter, RANK, probe))
    return model, speakers, base_fingerprint(model)


def _logprobs(model: Any) -> tuple[float, ...]:
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + ANSWER])).logits[0].double()
    steps = torch.log_softmax(logits, -1)[len(PROMPT) - 1 : -1]
    return tuple(float(step[token]) for step, token in zip(steps, ANSWER, strict=True))
