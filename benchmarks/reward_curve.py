"""Sample efficiency of the reward heads: true accuracy on unseen topics against the number of noisy votes.

    python -m benchmarks.reward_head sample --model FOLDER --cache FOLDER     (repeat until it says "complete")
    python -m benchmarks.reward_curve --model FOLDER --cache FOLDER --out FOLDER [--seconds 600]

Heads: `mix`, the default; `last_probe`, the textbook place (last token, top layer) under a ridge chosen by evidence, on
the frozen base; `last` and `trl`, the trained ones, come from `python -m benchmarks.peer curve`. Each (head, utility,
votes) is one record in `reward_curve.json`, written as soon as it is known: `head`, `utility`, `votes` and `accuracy`,
a list with one figure a draw. What is there is not made again. The table and the picture are drawn from that file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import given as asked_for
from benchmarks.reward_head import load, make_votes, margins_of
from train.files import write_text

COUNTS = (32, 64, 128, 256, 512, 1024)
TASTES = ("warm_words", "no_first_person", "plain_words", "short_first_sentence", "on_topic", "mix")
MANY = 256
"""From more votes than this on, half the draws: they differ less, and a fit costs more."""
COLOURS = ("#3159c9", "#c0562f", "#2f8f5b", "#8a4fb0")

Record = dict[str, Any]


def last_states(model: Path, cache: Path, answers: Sequence[Any]) -> np.ndarray:
    """Top-layer state of each answer's last token, (answers, d), from the cache or computed now."""
    from safetensors.numpy import load_file, save_file

    from train.base import Base, reference_pass

    path = cache / "last.safetensors"
    if path.is_file() and len(load_file(path)["last"]) == len(answers):
        return np.asarray(load_file(path)["last"].astype(np.float64))
    base = Base.load(model)
    found = np.zeros((len(answers), base.width), dtype=np.float32)
    for chunk in reference_pass(base, answers, (base.depth,), budget=2048, logprobs=False):
        masks = chunk.packed.sequence_response_mask
        for at, row in enumerate(chunk.rows):
            found[row] = chunk.hidden[base.depth][at][masks[at]][-1].float().numpy()
    save_file({"last": found}, path)
    return found.astype(np.float64)


def measure(data: Any, heads: Mapping[str, Any], out: Path, draws: int, seconds: float) -> list[Record]:
    """Fill the file of records, for about so many seconds."""
    from feedback.simulator.utilities import UTILITIES

    path = out / "reward_curve.json"
    records: list[Record] = json.loads(path.read_text()) if path.is_file() else []
    known = {(r["head"], r["utility"], r["votes"]) for r in records}
    began = time.monotonic()
    for count in COUNTS:
        for name in TASTES:
            taste = UTILITIES[name]
            margins = margins_of(data, taste)
            if int((np.abs(margins["train"]) > taste.tie_margin).sum()) < count:
                continue
            for head, fit in heads.items():
                if (head, name, count) in known:
                    continue
                if time.monotonic() - began > seconds:
                    print("not yet complete: run again")
                    return records
                some = max(2, draws // 2) if count > MANY else draws
                got = [_accuracy(data, fit, margins, taste.tie_margin, count, seed) for seed in range(some)]
                records.append({"head": head, "utility": name, "votes": count, "accuracy": [round(a, 4) for a in got]})
                write_text(path, json.dumps(records, indent=1) + "\n")
                print(f"{head} {name} n={count}: {np.mean(got):.3f} +- {np.std(got):.3f}", flush=True)
    print("complete")
    return records


def _accuracy(
    data: Any, fit: Any, margins: Mapping[str, np.ndarray], tie_margin: float, count: int, seed: int
) -> float:
    votes = make_votes(data, margins["train"], tie_margin, count, seed)
    held = np.flatnonzero(np.abs(margins["held_out"]) > tie_margin)
    pairs = np.array(data.pairs["held_out"])[held]
    said = fit(votes, pairs[:, 0], pairs[:, 1])
    return float(np.mean((said > 0) == (margins["held_out"][held] > 0)))


def table(records: Sequence[Record]) -> str:
    """The records as a Markdown table, a row for each head and utility."""
    counts = sorted({r["votes"] for r in records})
    cells = {(r["head"], r["utility"], r["votes"]): _cell(r["accuracy"]) for r in records}
    rows = list(dict.fromkeys((r["utility"], r["head"]) for r in sorted(records, key=lambda r: r["utility"])))
    lines = ["| hidden utility | head | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 2) + "|"]
    for utility, head in rows:
        lines.append(f"| {utility} | {head} | " + " | ".join(cells.get((head, utility, n), "") for n in counts) + " |")
    return "\n".join(lines)


def _cell(draws: Sequence[float]) -> str:
    mean = f"{np.mean(draws):.2f}"
    return f"{mean} +- {np.std(draws):.2f}" if len(draws) > 1 else mean


def picture(records: Sequence[Record]) -> str:
    """The records as one SVG: a panel for each utility, a line for each head."""
    heads = list(dict.fromkeys(r["head"] for r in records))
    utilities = list(dict.fromkeys(r["utility"] for r in records))
    wide, high, across = 260, 190, 3
    rows = -(-len(utilities) // across)
    panels = "".join(
        f'<g transform="translate({at % across * wide},{at // across * high + 24})">'
        f"{_panel([r for r in records if r['utility'] == utility], utility, heads)}</g>"
        for at, utility in enumerate(utilities)
    )
    legend = "".join(
        f'<text x="{10 + 130 * at}" y="16" fill="{COLOURS[at % len(COLOURS)]}">{escape(head)}</text>'
        for at, head in enumerate(heads)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide * across} {rows * high + 24}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>{legend}{panels}</svg>'
    )


def _panel(records: Sequence[Record], title: str, heads: Sequence[str]) -> str:
    left, right, top, bottom = 34.0, 250.0, 20.0, 160.0

    def x(votes: int) -> float:
        return left + (right - left) * float(np.log2(votes / COUNTS[0]) / np.log2(COUNTS[-1] / COUNTS[0]))

    def y(share: float) -> float:
        return bottom - (bottom - top) * (share - 0.45) / 0.55

    parts = [f'<text x="{left}" y="12" font-weight="bold">{escape(title)}</text>']
    for level in (0.5, 0.75, 1.0):
        parts.append(f'<path d="M{left} {y(level):.1f}H{right}" stroke="#d5d9e2"/>')
        parts.append(f'<text x="{left - 4}" y="{y(level) + 4:.1f}" text-anchor="end" fill="#667085">{level:g}</text>')
    for votes in COUNTS[::2]:
        parts.append(f'<text x="{x(votes):.1f}" y="{bottom + 14}" text-anchor="middle" fill="#667085">{votes}</text>')
    for at, head in enumerate(heads):
        mine = sorted((r["votes"], float(np.mean(r["accuracy"]))) for r in records if r["head"] == head)
        line = " ".join(f"{x(votes):.1f},{y(share):.1f}" for votes, share in mine)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[at % len(COLOURS)]}" stroke-width="2"/>')
    return "".join(parts)


def heads_for(data: Any, last: np.ndarray) -> dict[str, Any]:
    """A function for each head: votes and pairs of answers to predicted score differences."""
    from train.reward.mix import answer_views, fit_weights

    def mix(votes: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        seen = answer_views(data.pooled, votes, data.spread)
        fitted = fit_weights(data.pooled, votes, np.arange(len(votes)), seen)
        return np.asarray(fitted.differences(data.pooled, first, second))

    def probe(votes: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pooled = {"state:0": last}
        return np.asarray(fit_weights(pooled, votes, np.arange(len(votes))).differences(pooled, first, second))

    return {"mix": mix, "last_probe": probe}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=asked_for.model_folder, required=True)
    parser.add_argument(
        "--cache", type=Path, required=True, help="where `benchmarks.reward_head sample` put the answers"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of reward_curve.json and reward_curve.svg")
    parser.add_argument("--draws", type=int, default=8, help="draws of votes for each figure, half from 512 votes on")
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after about so long; run again to go on")
    given = parser.parse_args()
    data = load(given.model, given.cache)
    heads = heads_for(data, last_states(given.model, given.cache, data.answers))
    given.out.mkdir(parents=True, exist_ok=True)
    records = measure(data, heads, given.out, given.draws, given.seconds)
    (given.out / "reward_curve.svg").write_text(picture(records))
    print(table(records))


if __name__ == "__main__":
    main()
