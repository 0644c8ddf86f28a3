"""Over-optimisation on the real model: the reward model's score goes on rising, what voters truly want doesn't.

    python -m benchmarks.overoptimisation --model FOLDER --cache FOLDER --out FILE [--utility mix] [--votes 64]

The curve of Gao et al. (2022), with their synthetic gold beside ours: a hidden utility votes (15% flipped) on cached
answers of the base (`benchmarks.reward_head sample`), a reward model is fitted, and PPO climbs it twice. `free` pays
nothing for distance and obeys no bound; `governed` has the default settings. Of every iteration's answers three are
asked: the reward model (proxy), the hidden utility (true; in standard deviations of the base's answers), and, from 512
decisive votes on, the witness: a model of votes that were kept from the first (`train.gold`). What the kept votes
would have stopped, and the policy they would have published, are read off the free run by the trainer's own rule.
One JSON line a run goes into FILE; `--draw SVG` draws all that FILE holds.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import given as asked_for
from benchmarks.reward_head import load_answers, make_votes, margins_of
from train.config import GovernorConfig

FREE_ITERATIONS = 14
RUNS: dict[str, dict[str, Any]] = {
    "free": {"ppo": {"kl_coefficient": 0.0, "iterations": FREE_ITERATIONS}, "governor": {"enabled": False}},
    "governed": {},
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One policy of a run.

    Attributes:
        kl: nats an answer to the base.
        proxy: mean score of the reward model.
        true: mean of the hidden utility, in standard deviations of the base's answers, 0 for the base.
        true_error: standard error of that mean.
        gold: mean score of the witness, None without one; gold_error is its standard error.
        breaches: bounds that the governor holds it to break.
    """

    kl: float
    proxy: float
    true: float
    true_error: float
    gold: float | None = None
    gold_error: float | None = None
    breaches: tuple[str, ...] = ()


@dataclass
class Recorder:
    """A source of rollouts that keeps what it gave."""

    inner: Any
    kept: list[Any] = field(default_factory=list)

    @property
    def local(self) -> bool:
        """As the source."""
        return bool(self.inner.local)

    def generate(self, prompts: Any, n: int, **how: Any) -> Any:
        """As the source."""
        self.kept.append(self.inner.generate(prompts, n, **how))
        return self.kept[-1]

    def close(self) -> None:
        """As the source."""
        self.inner.close()


def prepared(model: Path, cache: Path, name: str, decisive: int, seed: int, work: Path) -> SimpleNamespace:
    """The base, the votes, and the models fitted to them: `head` and `judge` (None without a witness)."""
    from transformers import AutoTokenizer

    from feedback.simulator.utilities import utility
    from train.base import Base
    from train.config import TrainConfig
    from train.gold import of_rows, withheld, witness
    from train.reading import Read
    from train.reward.extract import FeatureReader, layers_of, vocabulary_for
    from train.reward.refresh import refresh

    taste, config, data = utility(name), TrainConfig(), load_answers(cache)
    votes = make_votes(data, margins_of(data, taste)["train"], taste.tie_margin, decisive, seed)
    if votes.decisive < decisive:
        raise SystemExit(
            f"overoptimisation: the cache has answers for {votes.decisive} decisive votes of {name}, not {decisive}; "
            "make more: benchmarks.reward_head sample --seconds 3600"
        )
    votes = _only_voted(votes)
    base, tokenizer = Base.load(model), AutoTokenizer.from_pretrained(model)
    asked_for.same_base(cache, base.fingerprint)
    train = [at for at, row in enumerate(data.rows) if row["split"] == "train"]
    asked = {tuple(data.rows[at]["prompt_ids"]): data.rows[at]["messages"] for at in train}
    layers = layers_of(base.depth, config.reward.depths)
    vocabulary = vocabulary_for(work, tokenizer, base.head.shape[0], list(asked))
    reader = FeatureReader(base, layers, vocabulary, work, config.reward.batch_tokens)
    read = Read(reader.read(votes.answers), reader.token_covariance(), layers, vocabulary)
    learnt, kept = (of_rows(votes, rows) for rows in withheld(votes, config.governor, config.seed))
    made = refresh(
        read.pooled,
        learnt,
        config.reward,
        layers=layers,
        vocabulary=vocabulary,
        base_fingerprint=base.fingerprint,
        spread=read.spread,
    )
    judge = witness(read, kept, base.fingerprint) if len(kept) else None
    return SimpleNamespace(
        base=base, tokenizer=tokenizer, taste=taste, asked=asked, head=made.head, judge=judge, votes=votes
    )


def _only_voted(votes: Any) -> Any:
    """The same votes, with the answers that nobody voted on left out."""
    from dataclasses import replace

    rows, places = np.unique(np.concatenate([votes.first, votes.second]), return_inverse=True)
    first, second = np.split(places, 2)
    return replace(votes, answers=tuple(votes.answers[row] for row in rows), first=first, second=second)


def climb(ready: SimpleNamespace, kind: str, work: Path) -> list[Seen]:
    """One run of PPO; what each of its policies is worth, to the proxy, to the witness and in truth."""
    from train.base import POLICY
    from train.config import TrainConfig
    from train.experience import score
    from train.ppo import PpoTrainer
    from train.sampler import LocalRollouts
    from train.topic import Topic

    config, base = TrainConfig.model_validate(RUNS[kind]), ready.base
    base.adapters.add(POLICY, config.seed)
    rollouts = Recorder(LocalRollouts(base, batch=config.rollout.batch, dtype=config.rollout.dtype))
    told: list[tuple[Any, Any]] = []
    PpoTrainer(
        base,
        rollouts,
        ready.head,
        list(ready.asked),
        topic=Topic.of(ready.tokenizer, base.head.shape[0], list(ready.asked)),
        witness=ready.judge if kind == "governed" else None,  # the free run is to show what comes after a stop
        config=config,
        folder=work / kind,
        observe=lambda metrics, judgement: _told(told, kind, metrics, judgement),
    ).run()
    rollouts.close()
    found, scale = [], None
    for (metrics, judgement), samples in zip(told, rollouts.kept, strict=True):
        worth = np.array([_worth(ready, sample) for sample in samples])
        scale = scale or (float(worth.mean()), float(worth.std()))
        gold: dict[str, float] = {}
        if ready.judge is not None:
            each = score(base, samples, ready.judge, config).scores
            gold = {"gold": float(each.mean()), "gold_error": float(each.std()) / math.sqrt(len(each))}
        found.append(
            Seen(
                kl=metrics.kl,
                proxy=metrics.score,
                true=(float(worth.mean()) - scale[0]) / scale[1],
                true_error=float(worth.std()) / scale[1] / math.sqrt(len(worth)),
                breaches=judgement.breaches,
                **gold,
            )
        )
    return found


def _told(told: list[tuple[Any, Any]], kind: str, metrics: Any, judgement: Any) -> None:
    told.append((metrics, judgement))
    print(f"  {kind} {metrics.iteration}: proxy {metrics.score:+.2f}, KL {metrics.kl:.1f}", flush=True)


def _worth(ready: SimpleNamespace, sample: Any) -> float:
    from feedback.contracts import Message

    messages = [Message(**turn) for turn in ready.asked[sample.prompt_ids]]
    return float(ready.taste.score(messages, ready.tokenizer.decode(sample.response_ids, skip_special_tokens=True)))


def stopped(run: Sequence[Seen]) -> tuple[int, int] | None:
    """Iteration at which the kept votes end a free run, and the policy that they publish; None: they let it go on."""
    from train.gold import Point, passed

    points = [Point(s.kl, s.gold, s.gold_error) for s in run if s.gold is not None and s.gold_error is not None]
    for end in range(1, len(points) + 1):
        if passed(points[:end]) is not None:
            return end - 1, max(range(end), key=lambda at: points[at].gold)
    return None


def recorded(path: Path) -> list[dict[str, Any]]:
    """The runs that a file holds; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def missing(records: Sequence[dict[str, Any]], name: str, decisive: int, seed: int, kinds: Sequence[str]) -> list[str]:
    """Those of the kinds of run that are not on record for this taste, number of votes and draw."""
    known = {r["kind"] for r in records if (r["utility"], r["decisive"], r["seed"]) == (name, decisive, seed)}
    return [kind for kind in kinds if kind not in known]


def summary(record: dict[str, Any]) -> str:
    """A run in a line."""
    run = [Seen(**seen) for seen in record["policies"]]
    best = max(run, key=lambda seen: seen.true)
    favourite = max(run, key=lambda seen: seen.proxy)
    line = (
        f"{record['utility']}, {record['decisive']} votes, {record['kind']}: the proxy's favourite ({favourite.kl:.1f} "
        f"nats) is truly {favourite.true:+.2f}, the last policy ({run[-1].kl:.1f} nats) {run[-1].true:+.2f}, the best "
        f"({best.kl:.1f} nats) {best.true:+.2f}"
    )
    if (end := stopped(run)) is not None and record["kind"] == "free":
        line += f"; the kept votes stop it at {run[end[0]].kl:.1f} nats and publish {run[end[1]].true:+.2f}"
    return line


def picture(records: Sequence[dict[str, Any]]) -> str:
    """All runs as one SVG: a panel for each taste and number of votes, KL to the right."""
    panels: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        panels.setdefault((record["utility"], record["decisive"]), []).append(record)
    wide, high = 400, 250
    drawn = "".join(
        f'<g transform="translate({at % 2 * wide},{at // 2 * high + 26})">{_panel(name, runs)}</g>'
        for at, (name, runs) in enumerate(panels.items())
    )
    rows = -(-len(panels) // 2)
    legend = "".join(
        f'<text x="{12 + 190 * at}" y="17" fill="{COLOURS[name]}">{said}</text>' for at, (name, said) in enumerate(SAID)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * wide} {rows * high + 26}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{legend}{drawn}</svg>\n'
    )


COLOURS = {"proxy": "#c0562f", "true": "#2f8f5b", "gold": "#3159c9", "governed": "#222"}
SAID = (
    ("proxy", "reward model (proxy)"),
    ("true", "hidden utility (truth)"),
    ("gold", "kept votes (witness)"),
    ("governed", "dots: truth with the governor"),
)
"""Lines of the free run; the governed run's policies are dots, hollow beyond a bound."""


def _panel(name: tuple[str, int], runs: Sequence[dict[str, Any]]) -> str:
    left, right, top, bottom = 40.0, 385.0, 28.0, 215.0
    every = [(record["kind"], [Seen(**seen) for seen in record["policies"]]) for record in runs]
    far = max(seen.kl for _, run in every for seen in run)
    values = [v for _, run in every for s in run for v in (s.proxy, s.true, s.gold) if v is not None]
    low, up = min(*values, 0.0), max(values)

    def at(seen: Seen, value: float) -> tuple[float, float]:
        across = math.sqrt(max(seen.kl, 0.0) / far)
        return left + (right - left) * across, bottom - (bottom - top) * (value - low) / (up - low)

    parts = [f'<text x="{left}" y="16" font-weight="bold">{name[0]}, {name[1]} votes</text>']
    step = max(1, round((up - low) / 6))
    for level in range(-(math.floor(-low) // step) * step, math.floor(up) + 1, step):
        y = bottom - (bottom - top) * (level - low) / (up - low)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    for nats in (1, 4, 9, 16, 25, 36, 49, 64, 81, 100):
        if nats <= far:
            x = left + (right - left) * math.sqrt(nats / far)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{nats}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">KL, nats an answer (root scale)</text>')
    bound = left + (right - left) * math.sqrt(GovernorConfig().max_kl / far)
    parts.append(
        f'<line x1="{bound:.1f}" x2="{bound:.1f}" y1="{top}" y2="{bottom}" stroke="#222" stroke-dasharray="4 3"/>'
        f'<text x="{bound + 4:.1f}" y="{top + 10}">the governor\'s bound</text>'
    )
    for kind, run in every:
        if kind == "free":
            for line in ("proxy", "true", "gold"):
                shown = [(s, v) for s in run if (v := getattr(s, line)) is not None]
                path = " ".join("{:.1f},{:.1f}".format(*at(s, v)) for s, v in shown)
                parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[line]}" stroke-width="2"/>')
            if (end := stopped(run)) is not None:
                x, _ = at(run[end[0]], 0.0)
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{COLOURS["gold"]}" '
                    f'stroke-dasharray="4 3"/><text x="{x - 4:.1f}" y="{bottom - 6}" text-anchor="end" '
                    f'fill="{COLOURS["gold"]}">kept votes stop here</text>'
                )
        else:
            for seen in run:
                x, y = at(seen, seen.true)
                inside = "none" if seen.breaches else COLOURS["true"]
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{inside}" stroke="{COLOURS["true"]}"/>')
    return "".join(parts)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=asked_for.model_folder, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="answers of `benchmarks.reward_head sample`")
    parser.add_argument(
        "--out", type=asked_for.writable, required=True, help="a JSON line a run; what it holds is not made again"
    )
    parser.add_argument(
        "--utility", action="append", type=asked_for.taste, help="hidden utility, may be repeated (default mix)"
    )
    parser.add_argument("--votes", action="append", type=int, help="decisive votes, may be repeated (default 64, 640)")
    parser.add_argument("--seed", type=int, default=0, help="of the voters")
    parser.add_argument("--kind", action="append", choices=list(RUNS), help="may be repeated (default both)")
    parser.add_argument("--draw", type=asked_for.writable, help="draw all that the file holds as this SVG")
    given = parser.parse_args()
    for name in given.utility or ["mix"]:
        for decisive in given.votes or [64, 640]:
            left = missing(recorded(given.out), name, decisive, given.seed, given.kind or list(RUNS))
            if not left:
                continue
            with tempfile.TemporaryDirectory() as folder:
                ready = prepared(given.model, given.cache, name, decisive, given.seed, Path(folder))
                for kind in left:
                    seen = [asdict(policy) for policy in climb(ready, kind, Path(folder))]
                    record = {"utility": name, "decisive": decisive, "seed": given.seed, "kind": kind, "policies": seen}
                    with given.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(summary(record), flush=True)
    if given.draw:
        given.draw.write_text(picture(recorded(given.out)))


if __name__ == "__main__":
    main()
