"""How many noisy votes the `mix` head needs: true accuracy on topics that it never saw, for every hidden utility.

    python -m benchmarks.reward_head sample --model FOLDER --cache FOLDER     (repeat until it says "complete")
    python -m benchmarks.reward_head fit --model FOLDER --cache FOLDER --votes 64 --votes 128

Answers are sampled from the bare base (48 tokens, temperature 1) on the simulator's train topics (two a prompt) and
held-out topics (four a prompt). Votes are decisive pairs under a hidden utility, 15% flipped, with the ties that such
voters would have cast beside them. The figure is the share of held-out pairs, noise-free, that the head orders rightly.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import given as asked_for
from train.files import write_text

FLIPPED = 0.15
CHUNK = 32
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2_200, 80  # so many pairs hold 1,024 decisive ones of each taste but one


def jobs() -> list[tuple[str, Any, int]]:
    """Split, prompt and number of answers."""
    from feedback.simulator.topics import prompts

    held_out = [("held_out", prompt, 4) for prompt in prompts("held_out", HELD_OUT_PROMPTS, seed=2)]
    return held_out + [("train", prompt, 2) for prompt in prompts("train", TRAIN_PROMPTS, seed=1)]


def sample(model: Path, cache: Path, seconds: float, everything: list[tuple[str, Any, int]] | None = None) -> None:
    """Sample what is not cached yet (None: `jobs()`), for about so many seconds."""
    from transformers import AutoTokenizer

    from train.base import Base
    from train.sampler import LocalRollouts

    tokenizer = AutoTokenizer.from_pretrained(model)
    base = Base.load(model)
    asked_for.same_base(cache, base.fingerprint)
    rollouts = LocalRollouts(base, adapter=None, batch=64)
    everything, started = everything or jobs(), time.monotonic()
    for start in range(0, len(everything), CHUNK):
        path = cache / f"answers-{start:04d}.json"
        if path.exists():
            continue
        if time.monotonic() - started > seconds:
            print("not yet complete: run again")
            return
        part = everything[start : start + CHUNK]
        rows = []
        for split in ("train", "held_out"):
            mine = [(start + at, prompt, n) for at, (kind, prompt, n) in enumerate(part) if kind == split]
            if not mine:
                continue
            ids = [_ids(tokenizer, prompt) for _, prompt, _ in mine]
            samples = rollouts.generate(ids, mine[0][2], max_tokens=48, temperature=1.0, seed=start)
            for at, one in enumerate(samples):
                group, prompt, _ = mine[at // mine[0][2]]
                text = tokenizer.decode(one.response_ids, skip_special_tokens=True)
                row = {"split": split, "group": group, "prompt_ids": one.prompt_ids}
                rows.append({**row, "response_ids": one.response_ids, "text": text, "messages": _messages(prompt)})
        write_text(path, json.dumps(rows))
        print(start, f"{time.monotonic() - started:.0f} s", flush=True)
    print("complete")


def _messages(prompt: Any) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in prompt.messages]


def _ids(tokenizer: Any, prompt: Any) -> tuple[int, ...]:
    encoded = tokenizer.apply_chat_template(_messages(prompt), add_generation_prompt=True, return_dict=True)
    return tuple(encoded["input_ids"])


def load(model: Path, cache: Path) -> SimpleNamespace:
    """`load_answers`, and pooled features."""
    from transformers import AutoTokenizer

    from train.base import Base
    from train.reward.config import RewardConfig
    from train.reward.extract import FeatureReader, layers_of, vocabulary_for

    data = load_answers(cache)
    rows, answers = data.rows, data.answers
    base = Base.load(model)
    asked_for.same_base(cache, base.fingerprint)
    prompts = [a.prompt_ids for a, row in zip(answers, rows, strict=True) if row["split"] == "train"]
    vocabulary = vocabulary_for(cache, AutoTokenizer.from_pretrained(model), base.head.shape[0], prompts)
    reader = FeatureReader(base, layers_of(base.depth, RewardConfig().depths), vocabulary, cache, 2048)
    started = time.monotonic()
    pooled = reader.read(answers)
    print(f"features of {len(answers)} answers: {time.monotonic() - started:.1f} s")
    return SimpleNamespace(**vars(data), pooled=pooled, spread=reader.token_covariance())


def load_answers(cache: Path) -> SimpleNamespace:
    """Answers, and those that may be compared: both to one prompt, and not the same.

    Raises:
        SystemExit: with one line, where there is nothing to learn from or nothing to judge by.
    """
    from train.reward.votes import Answer

    rows = [row for path in sorted(cache.glob("answers-*.json")) for row in json.loads(path.read_text())]
    answers = [Answer(tuple(row["prompt_ids"]), tuple(row["response_ids"])) for row in rows]
    pairs: dict[str, list[tuple[int, int]]] = {"train": [], "held_out": []}
    groups: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(row["group"], []).append(at)
    for members in groups.values():
        pairs[rows[members[0]]["split"]] += [p for p in combinations(members, 2) if answers[p[0]] != answers[p[1]]]
    if not (pairs["train"] and pairs["held_out"]):
        raise SystemExit(
            f"{cache} lacks answers to learn from or to judge by: run this benchmark's `sample` on it first"
        )
    return SimpleNamespace(rows=rows, answers=answers, pairs=pairs)


def margins_of(data: SimpleNamespace, taste: Any) -> dict[str, np.ndarray]:
    """How much better the first of each pair is in the taste's eyes, noise-free, by split: (pairs,)."""
    from feedback.contracts import Message

    worth = [taste.score([Message(**m) for m in row["messages"]], row["text"]) for row in data.rows]
    return {split: np.array([worth[a] - worth[b] for a, b in pairs]) for split, pairs in data.pairs.items()}


def make_votes(data: SimpleNamespace, margins: np.ndarray, tie_margin: float, count: int, seed: int) -> Any:
    """`count` decisive votes (if there are so many), 15% flipped, and as many ties as went with them."""
    from train.reward.votes import Votes

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.pairs["train"]))
    picked: list[tuple[int, int, bool]] = []
    decisive = 0
    for at in order:
        if decisive == count:
            break
        first, second = data.pairs["train"][at]
        tied = abs(margins[at]) <= tie_margin
        if not tied:
            decisive += 1
            if (margins[at] < 0) != (rng.random() < FLIPPED):
                first, second = second, first
        picked.append((first, second, bool(tied)))
    n = len(picked)
    return Votes(
        answers=tuple(data.answers),
        first=np.array([p[0] for p in picked]),
        second=np.array([p[1] for p in picked]),
        tied=np.array([p[2] for p in picked]),
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.arange(n),
        voter=np.arange(n) % 8,
        reasons=((),) * n,
    )


def fit(model: Path, cache: Path, counts: list[int], repeats: int, blocks: list[str] | None) -> None:
    """Print the table."""
    from feedback.simulator.utilities import UTILITIES
    from train.reward.mix import answer_views, fit_weights

    data = load(model, cache)
    pooled = {n: v for n, v in data.pooled.items() if blocks is None or n in blocks}
    print("| hidden utility | " + " | ".join(f"n={n}" for n in counts) + " | decisive share |")
    print("|---" * (len(counts) + 2) + "|")
    means = []
    for name, taste in UTILITIES.items():
        margins = margins_of(data, taste)
        held = np.flatnonzero(np.abs(margins["held_out"]) > taste.tie_margin)
        first = np.array([data.pairs["held_out"][i][0] for i in held])
        second = np.array([data.pairs["held_out"][i][1] for i in held])
        cells = []
        for count in counts:
            got = []
            for seed in range(repeats):
                votes = make_votes(data, margins["train"], taste.tie_margin, count, seed)
                spread = {n: c for n, c in data.spread.items() if n in pooled}
                seen = answer_views(pooled, votes, spread)
                weights = fit_weights(pooled, votes, np.arange(len(votes)), seen)
                said = weights.differences(pooled, first, second)
                got.append(float(np.mean((said > 0) == (margins["held_out"][held] > 0))))
            cells.append((float(np.mean(got)), float(np.std(got)), votes.decisive))
        means.append([c[0] for c in cells])
        share = float(np.mean(np.abs(margins["train"]) > taste.tie_margin))
        listed = " | ".join(
            f"{a:.2f} +- {e:.2f}" + (f" ({d})" if d < n else "") for (a, e, d), n in zip(cells, counts, strict=True)
        )
        print(f"| {name} | {listed} | {share:.2f} |", flush=True)
    print("| mean | " + " | ".join(f"{m:.3f}" for m in np.mean(means, axis=0)) + " | |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["sample", "fit"])
    parser.add_argument("--model", type=asked_for.model_folder, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--votes", type=int, action="append")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--blocks", nargs="*", help="only these blocks of features, for comparison")
    given = parser.parse_args()
    if given.stage == "sample":
        sample(given.model, given.cache, given.seconds)
    else:
        fit(given.model, given.cache, given.votes or [64, 128], given.repeats, given.blocks)


if __name__ == "__main__":
    main()
