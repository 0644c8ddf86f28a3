"""TRL's PPOTrainer with a LoRA policy (reference: adapter off) and a LoRA value model, float32, on given prompts.

Job: model, reward (folder of `reward.py`), prompts (token ids), iterations or seconds (the iteration under way then is
finished), batch, minibatches, epochs, response_length, temperature, learning_rate, kl, value ("lora" or "full"), seed,
rank, alpha, save (folder or null), gradient_checkpointing (of policy and value model). Only the training loop is timed,
saving and loading are outside it.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
import usage
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    """Train and save."""
    job = usage.job()
    clock = Clock(job.get("seconds"))
    trainer = make(job, [clock])
    with contextlib.suppress(TimeIsUp):
        trainer.train()
    figures: dict[str, Any] = {**clock.figures, "episodes": clock.iterations * job["batch"]}
    figures |= {"peak_gib": usage.peak_gib(), "iterations": clock.iterations, "log": clock.log}
    if job["save"]:
        trainer.model.policy.save_pretrained(job["save"])
    usage.answer(figures)


def make(job: dict[str, Any], callbacks: list[TrainerCallback]) -> PPOTrainer:
    """The trainer, ready to go."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # TRL masks every token that equals the padding
        tokenizer.pad_token = tokenizer.unk_token
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    reward.requires_grad_(False)
    for model in (reward, value):
        model.config.pad_token_id = tokenizer.pad_token_id
    shape = {"r": job["rank"], "lora_alpha": job["alpha"], "lora_dropout": 0.0, "target_modules": "all-linear"}
    if job["value"] == "lora":
        value = get_peft_model(value, LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **shape))
    recompute = job.get("gradient_checkpointing", False)
    for model in (policy, value) if recompute else ():
        # PPOConfig's own switch reaches no model: PPOTrainer trains in a loop of its own, which never asks for it.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    settings = PPOConfig(
        output_dir=tempfile.mkdtemp(prefix="peer-ppo-"),
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=1,  # with more, TRL takes fewer optimizer steps than minibatches
        num_mini_batches=job["minibatches"],
        num_ppo_epochs=job["epochs"],
        total_episodes=job["batch"] * (job.get("iterations") or 10_000),
        local_rollout_forward_batch_size=job["batch"],
        response_length=job["response_length"],
        temperature=job["temperature"],
        stop_token="eos",
        kl_coef=job["kl"],
        kl_estimator=job.get("kl_estimator", "k1"),
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        num_sample_generations=0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=recompute,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=job["seed"],
    )
    return PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in job["prompts"]]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **shape),
        callbacks=callbacks,
    )


class TimeIsUp(Exception):
    """PPOTrainer asks no callback whether to stop."""


class Clock(TrainerCallback):
    """The training loop's time; ends it when `seconds` are over."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self.iterations = 0
        self.figures: dict[str, float] = {}
        self.log: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._span = usage.Span()

    def on_log(self, _arguments: Any, _state: Any, _control: Any, logs: dict[str, Any], **__: Any) -> None:
        """Keep the iteration's figures."""
        wanted = ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg")
        self.log.append({name: round(logs[name], 4) for name in wanted if name in logs})

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An iteration is over."""
        self.iterations += 1
        self.figures = self._span.done()
        print(self.figures, self.log[-1:], flush=True)
        if self._seconds is not None and self.figures["wall_s"] >= self._seconds:
            raise TimeIsUp


if __name__ == "__main__":
    main()
