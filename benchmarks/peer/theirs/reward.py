"""TRL's RewardTrainer with a PEFT LoRA and a scalar head, float32, on given token ids.

Job: model, train and held_out (lists of {prompt_ids, chosen_ids, rejected_ids}), batch, micro, learning_rate, schedule,
seed, rank, alpha, save (folder or null), evaluate. Only the training loop is timed. With `judged` (prompt and response
ids of answers) and `counts` (pairs learnt from) it also tells those answers' scores on the way, inside the time.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import usage
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer


def main() -> None:
    """Train, judge, save."""
    job = usage.job()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # else the end of a turn would count as padding
        tokenizer.pad_token = tokenizer.unk_token
    arguments = RewardConfig(
        output_dir=tempfile.mkdtemp(prefix="peer-reward-"),
        num_train_epochs=1,
        per_device_train_batch_size=job["micro"],
        gradient_accumulation_steps=job["batch"] // job["micro"],
        per_device_eval_batch_size=8,
        learning_rate=job["learning_rate"],
        lr_scheduler_type=job["schedule"],
        weight_decay=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,  # TRL's default saves memory here and takes a fifth longer
        model_init_kwargs={"dtype": "float32"},
        seed=job["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    clock = Clock()
    watch = Watch(job, tokenizer.pad_token_id) if "judged" in job else None
    trainer = RewardTrainer(
        model=job["model"],
        args=arguments,
        train_dataset=rows(job["train"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            r=job["rank"],
            lora_alpha=job["alpha"],
            lora_dropout=0.0,
            target_modules="all-linear",
            modules_to_save=["score"],
        ),
        callbacks=[clock, *([watch] if watch else [])],
    )
    trainer.train()
    figures: dict[str, Any] = {**clock.figures, "pairs": len(job["train"]), "peak_gib": usage.peak_gib()}
    figures["losses"] = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    if job["evaluate"]:
        judged = trainer.evaluate(rows(job["held_out"]))
        figures |= {"accuracy": judged["eval_accuracy"], "log_loss": judged["eval_loss"]}
    if watch:
        figures["scores"] = watch.scores
    if job["save"]:
        merged = trainer.model.merge_and_unload()
        merged.config.pad_token_id = tokenizer.pad_token_id
        merged.save_pretrained(job["save"])
        tokenizer.save_pretrained(job["save"])
    usage.answer(figures)


def rows(pairs: list[dict[str, Any]]) -> Dataset:
    """Pairs as RewardTrainer takes tokenized ones."""
    return Dataset.from_list(
        [{f"{side}_ids": pair["prompt_ids"] + pair[f"{side}_ids"] for side in ("chosen", "rejected")} for pair in pairs]
    )


class Clock(TrainerCallback):
    """The training loop's time."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._span = usage.Span()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.figures = self._span.done()


class Watch(TrainerCallback):
    """Scores of given answers after so many pairs."""

    def __init__(self, job: dict[str, Any], pad: int) -> None:
        self._answers = sorted(enumerate([*p, *r] for p, r in job["judged"]), key=lambda item: len(item[1]))
        self._counts, self._batch, self._pad = job["counts"], job["batch"], pad
        self.scores: list[list[float]] = []

    def on_step_end(self, _arguments: Any, state: Any, _control: Any, **more: Any) -> None:
        """Judge when the next count is reached."""
        reached = state.global_step * self._batch
        if len(self.scores) < len(self._counts) and reached >= self._counts[len(self.scores)]:
            self.scores.append(self._score(more["model"]))

    def _score(self, model: Any) -> list[float]:
        found = [0.0] * len(self._answers)
        training = model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, len(self._answers), 16):
                part = self._answers[start : start + 16]
                longest = max(len(ids) for _, ids in part)
                ids = torch.tensor([one + [self._pad] * (longest - len(one)) for _, one in part])
                mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for _, one in part])
                logits = model(input_ids=ids, attention_mask=mask).logits[:, 0]
                for (at, _), score in zip(part, logits.tolist(), strict=True):
                    found[at] = score
        model.train(training)
        return found


if __name__ == "__main__":
    main()
