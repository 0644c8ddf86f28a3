"""Our side of the comparison, in a process of its own: `python -m benchmarks.peer.ours WHAT JOB.json ANSWER.json`.

WHAT is `data` (token ids for both sides), `reward` (the `last` or the `mix` head), `ppo`, or the parts of
`learning_data`. Jobs and answers are those of the scripts in `theirs/`; only the training itself is timed.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer import data
from benchmarks.peer.theirs import usage


def tokens(job: dict[str, Any]) -> dict[str, Any]:
    """Pairs and prompts as token ids: after the chat template, answers with their end of turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def prompt(messages: list[data.Message]) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    def answer(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    pairs = [
        {
            "prompt_ids": prompt(pair["prompt"]),
            "chosen_ids": answer(pair["chosen"]),
            "rejected_ids": answer(pair["rejected"]),
        }
        for pair in data.pairs(job["train_pairs"] + job["held_out_pairs"], job["seed"])
    ]
    prompts = [prompt(messages) for messages in data.conversations(job["prompts"], job["seed"] + 1)]
    return {"train": pairs[: job["train_pairs"]], "held_out": pairs[job["train_pairs"] :], "prompts": prompts}


def reward(job: dict[str, Any]) -> dict[str, Any]:
    """Fit a reward model on the pairs; its accuracy on the held-out ones."""
    from train.base import Base
    from train.config import LoraSettings
    from train.reward.config import RewardConfig

    base = Base.load(job["model"], LoraSettings(rank=job["rank"], alpha=job["alpha"]))
    config = RewardConfig(learning_rate=job["learning_rate"], batch_pairs=job["batch"])
    fit = _last if job["head"] == "last" else _mix
    figures, difference = fit(base, job, config)
    figures |= {"pairs": len(job["train"]), "accuracy": float(np.mean(difference > 0))}
    return figures | {"log_loss": float(np.mean(np.logaddexp(0.0, -difference)))}


def _last(base: Any, job: dict[str, Any], config: Any) -> tuple[dict[str, Any], Any]:
    from train.reward.last import score_all, train_last

    votes = votes_of(job["train"])
    span = usage.Span()
    head = train_last(base, votes, np.arange(len(votes)), config, job["seed"])
    figures = {**span.done(), "peak_gib": usage.peak_gib()}
    held = votes_of(job["held_out"])
    scores = score_all(head, held.answers)
    if job["save"]:
        head.save(Path(job["save"]))
    return figures, scores[held.first] - scores[held.second]


def _mix(base: Any, job: dict[str, Any], config: Any) -> tuple[dict[str, Any], Any]:
    from transformers import AutoTokenizer

    from train.reward.extract import FeatureReader, layers_of, vocabulary_for
    from train.reward.mix import answer_views, fit_weights, make_head

    votes, held = votes_of(job["train"]), votes_of(job["held_out"])
    layers = layers_of(base.depth, config.depths)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    with tempfile.TemporaryDirectory() as folder:
        span = usage.Span()
        prompts = [tuple(pair["prompt_ids"]) for pair in job["train"]]
        vocabulary = vocabulary_for(Path(folder), tokenizer, base.head.shape[0], prompts)
        reader = FeatureReader(base, layers, vocabulary, Path(folder), config.batch_tokens)
        pooled = reader.read(votes.answers)
        seen = answer_views(pooled, votes, reader.token_covariance())
        weights = fit_weights(pooled, votes, np.arange(len(votes)), seen)
        figures = {**span.done(), "peak_gib": usage.peak_gib()}
        difference = weights.differences(reader.read(held.answers), held.first, held.second)
    if job["save"]:
        about = {"layers": layers, "vocabulary": vocabulary, "base_fingerprint": base.fingerprint, "metrics": {}}
        make_head(weights, pooled, votes, **about).save(Path(job["save"]))
    return figures, difference


def votes_of(pairs: Sequence[dict[str, Any]]) -> Any:
    """Votes of one voter each way: every pair's chosen answer won."""
    from train.reward.votes import Answer, Votes

    index: dict[Any, int] = {}
    sides: list[list[int]] = [[], []]
    for pair in pairs:
        for side, rows in zip(("chosen", "rejected"), sides, strict=True):
            answer = Answer(tuple(pair["prompt_ids"]), tuple(pair[f"{side}_ids"]))
            rows.append(index.setdefault(answer, len(index)))
    count = len(pairs)
    return Votes(
        answers=tuple(index),
        first=np.array(sides[0]),
        second=np.array(sides[1]),
        tied=np.zeros(count, dtype=bool),
        both_bad=np.zeros(count, dtype=bool),
        weight=np.ones(count),
        margin=np.zeros(count),
        conversation=np.arange(count),
        voter=np.zeros(count, dtype=np.int64),
        reasons=((),) * count,
    )


def ppo(job: dict[str, Any]) -> dict[str, Any]:
    """Iterations of PPO with our default methods, and the batch, epochs and lengths of the job."""
    from transformers import AutoTokenizer

    from train.base import POLICY, Base
    from train.config import TrainConfig
    from train.errors import CycleInterrupted
    from train.ppo import PpoTrainer
    from train.reward.last import LastHead
    from train.reward.mix import MixHead
    from train.sampler import LocalRollouts
    from train.topic import Topic

    config = TrainConfig.model_validate(_settings(job))
    base = Base.load(job["model"], config.lora)
    head = LastHead.load(Path(job["reward"]), base) if job["head"] == "last" else MixHead.load(Path(job["reward"]))
    base.adapters.add(POLICY, config.seed)
    rollouts = LocalRollouts(base, batch=config.rollout.batch, dtype=config.rollout.dtype)
    found: list[Any] = []
    figures: dict[str, Any] = {}

    def observe(metrics: Any, _judgement: Any) -> None:
        found.append(metrics)
        figures.update(span.done())

    prompts = [tuple(prompt) for prompt in job["prompts"]]
    topic = None
    if job["head"] == "mix":  # our default watches the topic too
        topic = Topic.of(AutoTokenizer.from_pretrained(job["model"]), base.head.shape[0], prompts)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PpoTrainer(
            base,
            rollouts,
            head,
            prompts,
            topic=topic,
            config=config,
            folder=Path(folder),
            observe=observe,
            should_stop=lambda: len(found) == job["iterations"],
        )
        span = usage.Span()
        with contextlib.suppress(CycleInterrupted):  # after the last asked iteration, before the next one's sampling
            trainer.run()
    steps = job["iterations"] * job["epochs"] * job["minibatches"]
    assert sum(metrics.updates for metrics in found) == steps, "an update was cut short: not the same work"
    phases = {phase: sum(metrics.seconds[phase] for metrics in found) for phase in found[0].seconds}
    return figures | {
        "episodes": job["iterations"] * job["batch"],
        "iterations": len(found),
        "peak_gib": usage.peak_gib(),
        "phase_s": {phase: round(seconds, 2) for phase, seconds in phases.items()},
        "answer_tokens": round(float(np.mean([metrics.length for metrics in found])), 2),
    }


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": job["seed"],
        "lora": {"rank": job["rank"], "alpha": job["alpha"]},
        "reward": {"head": job["head"], "credit": "end" if job["head"] == "last" else "token"},
        "ppo": {
            "iterations": job["iterations"] + 1,
            "episodes": job["batch"],
            "answers_per_prompt": job["answers"],
            "minibatch": job["batch"] // job["minibatches"],
            "epochs": job["epochs"],
            "learning_rate": job["learning_rate"],
            "max_approx_kl": None,
            "critic": job["critic"],
            "gradient_checkpointing": job["gradient_checkpointing"],
        },
        "rollout": {"max_tokens": job["response_length"], "temperature": job["temperature"]},
    }


def main() -> None:
    """Command line."""
    from benchmarks.peer import curve, learning_data

    parts = {
        "data": tokens,
        "reward": reward,
        "curve": curve.ours,
        "ppo": ppo,
        "votes": learning_data.votes,
        "verdict": learning_data.verdict,
    }
    what = parts[sys.argv.pop(1)]
    usage.answer(what(usage.job()))


if __name__ == "__main__":
    main()
