"""The textbook reward model's sample efficiency, ours and TRL's: one pass over the same noisy votes, judged on the way.

    python -m benchmarks.peer curve --model FOLDER --votes FOLDER

`--votes` is the cache of `benchmarks.reward_head sample`. Each side sees every decisive vote once, at a constant rate
(TRL's default falls to zero at the end), so the model after n votes is the one that n votes give: a single run has
every n. Ties are left out on both sides, because TRL has no place for them. Records go into `reward_curve.json` of that
folder, for `benchmarks.reward_curve` to draw; what is there is not made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer import runs
from benchmarks.peer.environment import Peer
from benchmarks.reward_curve import COUNTS, TASTES
from benchmarks.reward_head import load_answers, make_votes, margins_of
from train.files import write_text

HEADS = {"hustings": "last", "trl": "trl"}
JOB = {"batch": 8, "micro": 8, "learning_rate": 1e-4, "schedule": "constant", "seed": 0, "rank": 16, "alpha": 32}


def curve(peer: Peer, work: Path, given: Any) -> None:
    """Each side on each taste's votes, up to `--most`; records are kept as they come."""
    path = given.votes / "reward_curve.json"
    data = load_answers(given.votes)
    for name in given.taste or TASTES:
        asked = _task(data, name, given.most)
        for side in given.side or HEADS:
            records = json.loads(path.read_text()) if path.is_file() else []
            mine = [r for r in records if (r["head"], r["utility"]) == (HEADS[side], name)]
            if {r["votes"] for r in mine}.issuperset(asked.counts):
                continue
            figures = _trained(peer, work, str(given.model), side, asked)
            found: list[dict[str, Any]] = [
                {"head": HEADS[side], "utility": name, "votes": n, "accuracy": [round(asked.right(scores), 4)]}
                for n, scores in zip(asked.counts, figures["scores"], strict=True)
            ]
            kept = [r for r in records if r not in mine]
            write_text(path, json.dumps(kept + found, indent=1) + "\n")
            told = "  ".join(f"{r['votes']}: {r['accuracy'][0]:.3f}" for r in found)
            print(f"{HEADS[side]} {name}  {told}  {figures['wall_s']:.0f} s", flush=True)


@dataclass(frozen=True, slots=True)
class _Task:
    """Votes to learn from and pairs to be judged by.

    Attributes:
        train: comparisons, in both sides' form.
        counts: after how many of them the model is judged.
        judged: prompt and response ids of the answers to score.
        pairs: rows of `judged`, (n, 2).
        first_better: whether the first of each pair is, (n,).
    """

    train: list[dict[str, list[int]]]
    counts: list[int]
    judged: list[list[list[int]]]
    pairs: NDArray[np.int64]
    first_better: NDArray[np.bool_]

    def right(self, scores: list[float]) -> float:
        """Share of the pairs that scores of `judged` order as the taste does."""
        said = np.asarray(scores)[self.pairs]
        return float(np.mean((said[:, 0] > said[:, 1]) == self.first_better))


def _task(data: Any, name: str, most: int) -> _Task:
    from feedback.simulator.utilities import UTILITIES

    taste = UTILITIES[name]
    margins = margins_of(data, taste)
    train = _decisive(data, make_votes(data, margins["train"], taste.tie_margin, most, seed=0))
    counts = [n for n in COUNTS if n <= len(train)]
    held = np.flatnonzero(np.abs(margins["held_out"]) > taste.tie_margin)
    pairs = np.array(data.pairs["held_out"])[held]
    judged = np.unique(pairs)
    answers = [[list(data.answers[at].prompt_ids), list(data.answers[at].response_ids)] for at in judged]
    return _Task(train[: counts[-1]], counts, answers, np.searchsorted(judged, pairs), margins["held_out"][held] > 0)


def _trained(peer: Peer, work: Path, model: str, side: str, asked: _Task) -> runs.Figures:
    job = {**JOB, "model": model, "train": asked.train, "judged": asked.judged, "counts": asked.counts}
    if side == "trl":
        return runs.theirs(peer, "reward", {**job, "save": None, "evaluate": False}, work)
    return runs.ours("curve", job, work)


def _decisive(data: Any, votes: Any) -> list[dict[str, list[int]]]:
    """The votes that name a winner, as both sides' jobs have them."""
    return [
        {
            "prompt_ids": list(data.answers[votes.first[row]].prompt_ids),
            "chosen_ids": list(data.answers[votes.first[row]].response_ids),
            "rejected_ids": list(data.answers[votes.second[row]].response_ids),
        }
        for row in np.flatnonzero(~votes.tied)
    ]


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Our `last` head on the job's pairs: scores of the judged answers after so many of them, and the time."""
    from benchmarks.peer.ours import votes_of
    from benchmarks.peer.theirs import usage
    from train.base import Base
    from train.config import LoraSettings
    from train.reward.config import RewardConfig
    from train.reward.last import scores_of, train_last
    from train.reward.votes import Answer

    base = Base.load(job["model"], LoraSettings(rank=job["rank"], alpha=job["alpha"]))
    config = RewardConfig(learning_rate=job["learning_rate"], batch_pairs=job["batch"])
    judged = [Answer(tuple(prompt), tuple(response)) for prompt, response in job["judged"]]
    scores: list[list[float]] = []

    def watch(seen: int, weight: Any) -> None:
        if len(scores) < len(job["counts"]) and seen >= job["counts"][len(scores)]:
            scores.append(scores_of(base, judged, weight, lora=True).tolist())

    votes = votes_of(job["train"])
    span = usage.Span()
    train_last(base, votes, np.arange(len(votes)), config, job["seed"], watch=watch)
    return {**span.done(), "scores": scores}
