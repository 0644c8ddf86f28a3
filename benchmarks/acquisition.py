"""Which prepared pairs to ask about: true accuracy of the reward model by how the pairs that it has seen were chosen.

    python -m benchmarks.acquisition sample --model FOLDER --cache FOLDER     (repeat until it says "complete")
    python -m benchmarks.acquisition run --model FOLDER --cache FOLDER --out FILE [--seconds 400]     (likewise)

People begin with random pairs; then each batch is chosen from answers to fresh prompts by the reward model fitted on
all votes so far. `random`: any pair. `disagreement`: the largest deviation of the score difference over the ensemble.
`information`: the largest expected information of a vote about the heads (train.reward.acquisition). `ranking`: no
choice, but each act ranks three answers. 15% of decisive votes are flipped (of rankings: neighbouring places).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import given as asked_for
from benchmarks.reward_curve import TASTES
from benchmarks.reward_head import FLIPPED, load, sample
from train.files import write_text

FIRST, BATCH, MOST = 32, 32, 128
OFFERED = 64
"""Prompts whose answers lie prepared when a batch is chosen."""
HOW = ("random", "disagreement", "information", "ranking")
Rows = list[tuple[int, int, bool]]


def jobs() -> list[tuple[str, Any, int]]:
    """Split, prompt and number of answers."""
    from feedback.simulator.topics import prompts

    train = [("train", prompt, 4) for prompt in prompts("train", 320, seed=1)]
    return train + [("held_out", prompt, 4) for prompt in prompts("held_out", 80, seed=2)]


class Bench:
    """Answers with their features and a hidden taste."""

    def __init__(self, data: SimpleNamespace, taste: Any) -> None:
        from feedback.contracts import Message

        self.data, self.margin = data, taste.tie_margin
        messages = [[Message(**m) for m in row["messages"]] for row in data.rows]
        self.worth = np.array([taste.score(m, row["text"]) for m, row in zip(messages, data.rows, strict=True)])
        prompts = defaultdict(list)
        for at, row in enumerate(data.rows):
            if row["split"] == "train":
                prompts[tuple(row["prompt_ids"])].append(at)
        self.prompts = [answers for answers in prompts.values() if len(answers) >= 3]
        held = np.array(data.pairs["held_out"])
        gap = self.worth[held[:, 0]] - self.worth[held[:, 1]]
        self.held, self.truth = held[np.abs(gap) > taste.tie_margin], gap[np.abs(gap) > taste.tie_margin] > 0

    def vote(self, pair: tuple[int, int], rng: np.random.Generator) -> Rows:
        """One vote on a pair."""
        gap = self.worth[pair[0]] - self.worth[pair[1]]
        if abs(gap) <= self.margin:
            return [(*pair, True)]
        right = (gap > 0) != (rng.random() < FLIPPED)
        return [(*pair, False) if right else (pair[1], pair[0], False)]

    def rank(self, answers: tuple[int, ...], rng: np.random.Generator) -> Rows:
        """One ranking: places by worth, each two neighbouring ones confused as a pair would be."""
        places: list[list[int]] = []
        for at in sorted(answers, key=lambda a: -self.worth[a]):
            if places and self.worth[places[-1][0]] - self.worth[at] <= self.margin:
                places[-1].append(at)
            else:
                places.append([at])
        for above in range(len(places) - 1):
            if rng.random() < FLIPPED:
                places[above], places[above + 1] = places[above + 1], places[above]
        place = {at: n for n, together in enumerate(places) for at in together}
        found: Rows = []
        for one, other in combinations(answers, 2):
            ahead, behind = (one, other) if place[one] <= place[other] else (other, one)
            found.append((ahead, behind, place[one] == place[other]))
        return found

    def fitted(self, acts: list[Rows], seed: int, *, members: bool) -> Any:
        """The head on all votes so far."""
        from train.reward.config import RewardConfig
        from train.reward.ensemble import bootstrap
        from train.reward.mix import answer_views, fit_members, fit_problem, make_head, pose
        from train.reward.refresh import weighed
        from train.reward.votes import Votes

        rows = [row for act in acts for row in act]
        talk = np.array([number for number, act in enumerate(acts) for _ in act])
        n = len(rows)
        votes = Votes(
            answers=tuple(self.data.answers),
            first=np.array([r[0] for r in rows]),
            second=np.array([r[1] for r in rows]),
            tied=np.array([r[2] for r in rows]),
            both_bad=np.zeros(n, dtype=bool),
            weight=np.ones(n),
            margin=np.zeros(n),
            conversation=talk,
            voter=talk % 8,
            reasons=((),) * n,
        )
        votes = weighed(votes, RewardConfig(), np.ones(n, dtype=bool))
        seen = answer_views(self.data.pooled, votes, self.data.spread)
        problem = pose(self.data.pooled, votes, np.arange(n), seen)
        found = fit_problem(problem)
        counts = bootstrap(votes.conversation, 8, seed)
        return make_head(
            found,
            self.data.pooled,
            votes,
            layers=self.data.layers,
            vocabulary=self.data.vocabulary,
            base_fingerprint="b" * 64,
            metrics={},
            members=fit_members(problem, found, counts) if members else None,
            pessimism=0.0,
        )

    def accuracy(self, head: Any) -> float:
        """Share of noise-free pairs on unseen topics that it orders rightly."""
        scores = head.scores(self.data.pooled)
        return float(np.mean((scores[self.held[:, 0]] > scores[self.held[:, 1]]) == self.truth))


def chosen(how: str, head: Any, bench: Bench, offered: list[list[int]]) -> list[tuple[int, int]]:
    """The pairs of a batch: of each prompt its most telling pair, of these the best."""
    from train.reward.acquisition import information, leads_of
    from train.reward.ensemble import disagreement

    pairs = [list(combinations(answers, 2)) for answers in offered]
    flat = np.array([pair for some in pairs for pair in some])
    members = head.member_scores(bench.data.pooled)
    if how == "disagreement":
        worth = disagreement(members, flat[:, 0], flat[:, 1])
    else:
        scores = head.scores(bench.data.pooled)
        worth = information(leads_of(scores, members, head.scale, flat[:, 0], flat[:, 1]))
    best, at = [], 0
    for some in pairs:
        top = at + int(np.argmax(worth[at : at + len(some)]))
        best.append((float(worth[top]), (int(flat[top][0]), int(flat[top][1]))))
        at += len(some)
    return [pair for _, pair in sorted(best, reverse=True)[:BATCH]]


def course(how: str, bench: Bench, seed: int) -> dict[int, float]:
    """Accuracy after so many acts of voting."""
    rng = np.random.default_rng(seed)
    order = [bench.prompts[at] for at in rng.permutation(len(bench.prompts))]

    def some(answers: list[int], count: int) -> tuple[int, ...]:
        return tuple(int(at) for at in rng.choice(answers, count, replace=False))

    def act(answers: list[int]) -> Rows:
        return bench.rank(some(answers, 3), rng) if how == "ranking" else bench.vote(some(answers, 2), rng)  # type: ignore[arg-type]

    acts = [act(answers) for answers in order[:FIRST]]
    at, found = FIRST, {}
    while True:
        head = bench.fitted(acts, seed, members=how in {"disagreement", "information"})
        found[len(acts)] = round(bench.accuracy(head), 4)
        if len(acts) >= MOST:
            return found
        if how in {"disagreement", "information"}:
            acts += [bench.vote(pair, rng) for pair in chosen(how, head, bench, order[at : at + OFFERED])]
            at += OFFERED
        else:
            acts += [act(answers) for answers in order[at : at + BATCH]]
            at += BATCH


def main() -> None:
    """Command line."""
    from threadpoolctl import threadpool_limits
    from transformers import AutoTokenizer

    from feedback.simulator.utilities import UTILITIES
    from train.base import Base
    from train.reward.config import RewardConfig
    from train.reward.extract import layers_of, vocabulary_for

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", default="run", choices=["sample", "run"])
    parser.add_argument("--model", type=asked_for.model_folder, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--out", type=asked_for.writable, help="JSON; what it holds is not made again (default: in the cache)"
    )
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--tastes", nargs="*", type=asked_for.taste, default=list(TASTES))
    given = parser.parse_args()
    given.out = given.out or given.cache / "acquisition.json"
    began = time.monotonic()
    if given.stage == "sample":
        sample(given.model, given.cache, given.seconds, jobs())
        return
    data = load(given.model, given.cache)
    base = Base.load(given.model)
    prompts = [a.prompt_ids for a, row in zip(data.answers, data.rows, strict=True) if row["split"] == "train"]
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    data.vocabulary = vocabulary_for(given.cache, tokenizer, base.head.shape[0], prompts)
    data.layers = layers_of(base.depth, RewardConfig().depths)
    records = json.loads(given.out.read_text()) if given.out.is_file() else []
    known = {(r["taste"], r["how"], r["draw"]) for r in records}
    for draw in range(given.draws):
        for name in given.tastes:
            bench = Bench(data, UTILITIES[name])
            for how in HOW:
                if (name, how, draw) in known:
                    continue
                if time.monotonic() - began > given.seconds:
                    print("not yet complete: run again")
                    return
                with threadpool_limits(2, user_api="blas"):
                    found = course(how, bench, draw)
                records.append({"taste": name, "how": how, "draw": draw, "accuracy": found})
                write_text(given.out, json.dumps(records, indent=1) + "\n")
                print(name, how, draw, found, f"{time.monotonic() - began:.0f} s", flush=True)
    print("complete")


if __name__ == "__main__":
    main()
