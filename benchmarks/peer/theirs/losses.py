"""TRL's own PPO arithmetic on a tiny model: what its training loop held at every backward pass, read from its frame.

PPOTrainer computes its losses inside of one long method, so there is no function to call: it is run, and looked at.
Job: as for `ppo.py`, with kl_estimators. Answer: by estimator, a list of snapshots of tensors.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import ppo
import torch
import usage
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

EVERY_STEP = ("mb_advantage", "mb_return", "mb_values", "mb_logprobs", "new_logprobs", "vpred", "pg_loss", "vf_loss")
ITERATION = ("rewards", "values", "advantages", "returns", "kl", "logprobs", "ref_logprobs", "scores")
MASKS = ("padding_mask", "padding_mask_p1")


def main() -> None:
    """Run once an estimator."""
    job = usage.job()
    set_seed(job["seed"])
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
        model.save_pretrained(folder)
        usage.answer({name: snapshots({**job, "reward": folder}, name) for name in job["kl_estimators"]})


def snapshots(job: dict[str, Any], estimator: str) -> list[dict[str, Any]]:
    """The loop's variables before every backward pass."""
    set_seed(job["seed"])
    trainer = ppo.make({**job, "kl_estimator": estimator}, [])
    trainer.stop_token_id = frequent(job)
    trainer.args.cliprange, trainer.args.cliprange_value = job["clip"], job["value_clip"]
    taken: list[dict[str, Any]] = []
    backward = trainer.accelerator.backward

    def look(loss: torch.Tensor) -> None:
        held = sys._getframe(1).f_locals
        taken.append({name: held[name].tolist() for name in (*EVERY_STEP, *ITERATION, *MASKS)})
        taken[-1] |= {"rows": held["micro_batch_inds"].tolist(), "loss": float(loss)}
        backward(loss)

    trainer.accelerator.backward = look
    trainer.train()
    return taken


def frequent(job: dict[str, Any]) -> int:
    """The token that most answers hold past their first; taken for their end, it makes them of uneven length."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    prompts = torch.tensor([job["prompts"][0]] * 64)
    ask = {"do_sample": True, "max_new_tokens": job["response_length"], "min_new_tokens": job["response_length"]}
    said = model.generate(prompts, attention_mask=torch.ones_like(prompts), temperature=job["temperature"], **ask)
    later = said[:, prompts.shape[1] + 1 :]
    return max(set(later.flatten().tolist()), key=lambda token: int((later == token).any(1).sum()))


if __name__ == "__main__":
    main()
