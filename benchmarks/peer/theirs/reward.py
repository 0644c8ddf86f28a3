"""TRL's RewardTrainer with a PEFT LoRA and a scalar head, float32, on given token ids.

Job: model, train and held_out (lists of {prompt_ids, chosen_ids, rejected_ids}), batch, micro, learning_rate, schedule,
seed, rank, alpha, save (folder or null), evaluate. Only the training loop is timed.
"""

from __future__ import annotations

import tempfile
from typing import Any

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
        callbacks=[clock],
    )
    trainer.train()
    figures: dict[str, Any] = {**clock.figures, "pairs": len(job["train"]), "peak_gib": usage.peak_gib()}
    figures["losses"] = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    if job["evaluate"]:
        judged = trainer.evaluate(rows(job["held_out"]))
        figures |= {"accuracy": judged["eval_accuracy"], "log_loss": judged["eval_loss"]}
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


if __name__ == "__main__":
    main()
