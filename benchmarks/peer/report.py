"""The table: both sides' median, their spread, the ratio, and whether it reaches the aim."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peer.runs import Figures
from train.files import write_text

TRL = "trl"
AIMS = {("ppo", "episodes_per_s"): 4.0, ("ppo", "peak_gib"): 1 / 3, ("reward", "pairs_per_s"): 2.0}
MEASURES = {"reward": ("pairs_per_s", "peak_gib", "accuracy"), "ppo": ("episodes_per_s", "peak_gib")}


def alone(rows: Sequence[Figures], share: float) -> list[Figures]:
    """The runs beside which all else took at most this share of the run's own processor time, and the verdicts."""
    return [row for row in rows if row.get("others_cpu_s", 0.0) <= share * row.get("cpu_s", math.inf)]


def report(rows: Sequence[Figures], out: Path | None, left_out: Sequence[Figures] = ()) -> int:
    """Print the table; 1 when there is nothing to print. `left_out` are runs that don't count, and are told of."""
    lines = [line for bench in sorted({row["bench"] for row in rows}) for line in compare(bench, rows)]
    learnt = [row for row in rows if row["bench"].startswith("learning-")]
    if not lines and not learnt:
        print("no runs of both sides on record yet")
        return 1
    print("| work | measure | side | median (least, most; runs) | TRL | ratio | processor time, ratio | aim |")
    print("|---|---|---|---|---|---|---|---|")
    for line in lines:
        print(shown(line))
    if learnt:
        print(
            "\n| votes of | side | seconds | true win rate [95%] | utility, base to policy | KL, nats | topic overlap |"
        )
        print("|---|---|---|---|---|---|---|")
    for row in learnt:
        print(shown_learning(row))
    print(f"\ncommits: {', '.join(sorted({str(row.get('commit', 'unknown')) for row in rows}))}")
    for who, count in sorted(Counter(row["who"] for row in left_out).items()):
        print(f"left out: {count} of {who}, beside which others took too much")
    if out is not None:
        found = {"comparisons": lines, "runs": [slim(row) for row in rows]}
        write_text(out, json.dumps(found | {"left_out": [slim(row) for row in left_out]}, indent=1) + "\n")
    return 0


def shown_learning(row: Figures) -> str:
    """A row of the second table."""
    low, high = row["interval"]
    before, after = row["utility"]
    topic = " to ".join(f"{x:.2f}" for x in row["topic"])
    rates = [("learning_rate", "learning rate"), ("reward_rate", "reward model's")]
    who = row["who"] + "".join(f", {name} {row[key]:g}" for key, name in rates if key in row)
    cells = [row["bench"].removeprefix("learning-"), who, f"{row['seconds']['cycle']:.0f}"]
    cells += [
        f"{row['win_rate']:.2f} [{low:.2f}, {high:.2f}]",
        f"{before:.2f} to {after:.2f}",
        f"{row['kl']:.1f}",
        topic,
    ]
    return f"| {' | '.join(cells)} |"


def compare(bench: str, rows: Sequence[Figures]) -> list[dict[str, Any]]:
    """Each of our sides against TRL, each measure."""
    of = {who: [r for r in rows if r["bench"] == bench and r["who"] == who] for who in {r["who"] for r in rows}}
    peer = of.get(TRL, [])
    kind = bench.split("-", maxsplit=1)[0]
    found = []
    for who in sorted(name for name, mine in of.items() if name != TRL and mine and peer):
        for measure in MEASURES.get(kind, ()):
            ours, theirs = spread(of[who], measure), spread(peer, measure)
            line = {"bench": bench, "side": who, "measure": measure, "ours": ours, "theirs": theirs}
            line["ratio"] = round(ours["median"] / theirs["median"], 3)
            if measure.endswith("_per_s"):
                # beside other jobs the wall clock says less than the processor time that the same work took
                line["cpu_ratio"] = round(spread(peer, "cpu_s")["median"] / spread(of[who], "cpu_s")["median"], 3)
            line["aim"] = AIMS.get((kind, measure))
            found.append(line)
    return found


def slim(row: Figures) -> Figures:
    """Without the long lists."""
    return {name: value for name, value in row.items() if name not in ("samples", "log", "losses")}


def spread(rows: Sequence[Figures], measure: str) -> dict[str, float]:
    """Median, least and most of a measure."""
    values = [float(row[measure]) for row in rows]
    return {"median": median(values), "least": min(values), "most": max(values), "runs": len(values)}


def shown(line: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [
        f"{s['median']:.3g} ({s['least']:.3g}, {s['most']:.3g}; {s['runs']})" for s in (line["ours"], line["theirs"])
    ]
    aim = line["aim"]
    verdict = "" if aim is None else f"{'at least' if aim >= 1 else 'at most'} {aim:.2g}: {verdict_of(line)}"
    processor = f"{line['cpu_ratio']:.2f}" if "cpu_ratio" in line else ""
    head = f"| {line['bench']} | {line['measure']} | {line['side']} "
    return f"{head}| {cells[0]} | {cells[1]} | {line['ratio']:.2f} | {processor} | {verdict} |"


def verdict_of(line: dict[str, Any]) -> str:
    """Whether the aim is reached."""
    reached = line["ratio"] >= line["aim"] if line["aim"] >= 1 else line["ratio"] <= line["aim"]
    return "reached" if reached else "missed"
