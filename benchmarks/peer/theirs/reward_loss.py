"""The loss of TRL's RewardTrainer on given scores.

Job: chosen, rejected, margin (lists of numbers). Answer: loss without and with the margin.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
import usage
from trl import RewardTrainer


def main() -> None:
    """Ask the method, with a stand-in for everything that is not arithmetic."""
    job = usage.job()
    scores = torch.tensor(job["chosen"] + job["rejected"])[:, None]
    inputs = {"attention_mask": torch.ones_like(scores)}
    plain = loss(scores, inputs)
    usage.answer({"plain": plain, "margin": loss(scores, {**inputs, "margin": torch.tensor(job["margin"])})})


def loss(scores: torch.Tensor, inputs: dict[str, Any]) -> float:
    """RewardTrainer.compute_loss of a model that answers with `scores`."""
    gathering = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=gathering,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    found = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), dict(inputs))
    return float(found)


if __name__ == "__main__":
    main()
