"""What a cycle did, as one HTML file with inline SVG plots: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from train.files import write_text
from train.report.plots import Line, Plot, calibration, draw, wilson

_CSS = Path(__file__).with_name("report.css")
_PHASES = {"sample": "sampling", "score": "scoring", "old": "log-probs", "update": "update"}
_COLOURS = 5
"""Of the style sheet: p0, p1 and so on."""
_TURN = re.compile(r"(?:^|\n)user\n")
_ANSWERS = "<h2>Answers before and after</h2>"
_REWARD_MODEL = "<h2>Reward model, on votes that it had not seen</h2>"
_TAKEN_OUT = "<p>Taken out: somebody in the votes of this cycle asked to be forgotten.</p>"


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What the report tells.

    Attributes:
        number: of the cycle.
        adapter: that was published; None where the policy was refused.
        facts: name and text of where it all came from (snapshot, parent, reward model, times).
        iterations: records of `metrics.jsonl`, one an iteration: `train.iteration.IterationMetrics`, `within` and
            `breaches`; a finite `gold` (the same answers by a model of other votes) is drawn beside the score.
        chosen: index of the iteration whose policy was published; 0 for none.
        finals: the best policies on fresh answers, `train.finals.Final`'s fields each; empty where none were held.
        max_kl: the governor's bound, nats an answer; None where it is off.
        judgement: the reward model's, as `reward.judge.Judgement`'s fields.
        samples: `prompt`, `before` and `after` each.
        figures: name and value of everything measured.
        config: the trainer's.
    """

    number: int
    adapter: str | None
    facts: Mapping[str, str]
    iterations: Sequence[Mapping[str, Any]]
    chosen: int
    max_kl: float | None
    judgement: Mapping[str, Any]
    samples: Sequence[Mapping[str, str]]
    figures: Mapping[str, float]
    config: Mapping[str, Any] = field(default_factory=dict)
    finals: Sequence[Mapping[str, Any]] = ()


def write_report(path: Path, report: CycleReport) -> None:
    """Write the page.

    Raises:
        OSError: the file can't be written.
    """
    title = f"Cycle {report.number}: {report.adapter or 'no policy was published'}"
    plots = "".join(draw(plot) for plot in _plots(report) if plot.known)
    body = [
        f'<header><p class="kicker">Hustings, training cycle {report.number}</p>'
        f"<h1>{escape(report.adapter or 'No policy was published')}</h1>{_facts(report.facts)}</header>",
        f'<section class="tiles">{_tiles(report)}</section>',
        f'<h2>Training</h2><section class="plots">{plots}</section>',
        _governor(report),
        _finals(report),
        _times([*report.iterations, *({"seconds": {"finals": final["seconds"]}} for final in report.finals)]),
        _ANSWERS + _samples(report.samples) if report.samples else "",
        f'{_REWARD_MODEL}<section class="plots pair">{calibration(report.judgement["calibration"])}'
        f'<div class="wide">{_slices(report.judgement)}</div></section>',
        f"<details><summary>Every figure</summary>{_figures(report.figures)}</details>",
        f"<details><summary>Settings</summary><pre>{escape(json.dumps(report.config, indent=1))}</pre></details>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{_CSS.read_text()}</style>"
    )
    write_text(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n')


def without_samples(page: str) -> str:
    """A written page without what people asked and models answered; one that has none comes back as it is.

    Quoted text is escaped, so a heading can't be in it.
    """
    before, answers, rest = page.partition(_ANSWERS)
    _, reward_model, after = rest.partition(_REWARD_MODEL)
    return f"{before}{answers}{_TAKEN_OUT}{reward_model}{after}" if answers and reward_model else page


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _tiles(report: CycleReport) -> str:
    known, judged = report.figures, report.judgement
    low, high = wilson(judged["accuracy"], judged["votes"])
    rows = [
        _change("Reward", known, "reward", "standard deviations of the voted answers"),
        _one("Win rate", known.get("reward_win_rate"), "{:.0%}", "over the base, as the reward model sees it"),
        _one("KL", known.get("policy_kl"), "{:.1f}", "nats an answer from the base"),
        _change("Length", known, "length", "tokens an answer"),
        _one(
            "Reward model", judged["accuracy"], "{:.0%}", f"of {judged['votes']} votes right ({low:.0%} to {high:.0%})"
        ),
    ]
    return "".join(rows)


def _one(title: str, value: float | None, form: str, note: str) -> str:
    shown = "–" if value is None or not math.isfinite(value) else form.format(value)
    return f"<div><h3>{title}</h3><b>{shown}</b><p>{escape(note)}</p></div>"


def _change(title: str, figures: Mapping[str, float], name: str, note: str) -> str:
    before, after = figures.get(f"base_{name}"), figures.get(f"policy_{name}")
    if before is None or after is None:
        return _one(title, None, "", note)
    form = "{:+.2f}" if name == "reward" else "{:.0f}"
    shown = f"{form.format(before)} <i>to</i> {form.format(after)}"
    return f"<div><h3>{title}</h3><b>{shown}</b><p>{escape(note)}</p></div>"


def _plots(report: CycleReport) -> list[Plot]:
    rows = report.iterations
    chosen = [report.chosen] if report.chosen else []

    def line(name: str, *, updated: bool = False, **more: Any) -> Line:
        """An iteration's figure; one without an update (the last, and one beyond the bounds) has no figure of one."""
        values = [None if updated and not row["updates"] else row.get(name) for row in rows]
        points = [(float(row["iteration"]), _number(value)) for row, value in zip(rows, values, strict=True)]
        return Line(points, marked=() if updated else chosen, **more)

    score = line("score", spread=[_number(row.get("score_std")) for row in rows])
    bound = {} if report.max_kl is None else {"bound": report.max_kl}
    most = max((_number(row["kl"]) for row in rows), default=0.0)
    return [
        Plot("Reward", "mean over answers, band of one standard deviation", [score]),
        Plot("KL", "nats an answer from the base", [line("kl")], bound if most > 0.5 * (report.max_kl or most) else {}),
        _reward_by_kl(report, chosen),
        Plot("Length", "tokens an answer", [line("length")], within=(0,)),
        Plot("Entropy", "nats a token", [line("entropy", updated=True)]),
        Plot(
            "Clip fraction",
            "share of tokens whose ratio was clipped",
            [line("clip_fraction", updated=True)],
            within=(0,),
        ),
        Plot("Distinct bigrams", "share within an answer", [line("distinct_within")], within=(1,)),
        Plot("Topic", "share of the question's wording taken up", [line("topic")], within=(0,)),
        Plot("Perplexity", "of the answers, under the base", [line("perplexity")]),
        Plot("Explained variance", "of the values, before the update", [line("explained_variance", updated=True)]),
    ]


def _reward_by_kl(report: CycleReport, chosen: Sequence[int]) -> Plot:
    rows = report.iterations
    kl = [max(_number(row["kl"]), 0.0) for row in rows]
    lines = [Line(list(zip(kl, (_number(row["score"]) for row in rows), strict=True)), marked=chosen)]
    gold = [(x, _number(row.get("gold"))) for x, row in zip(kl, rows, strict=True)]
    if any(math.isfinite(y) for _, y in gold):
        lines = [
            Line(lines[0].points, marked=chosen, name="the model trained against"),
            Line(gold, "second", "other votes"),
        ]
    title = "Reward by KL" if len(lines) == 1 else "Reward by KL, proxy and gold"
    return Plot(title, "what each nat bought", lines, x_name="KL, nats an answer", whole=False)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _governor(report: CycleReport) -> str:
    rows, chosen = report.iterations, report.chosen
    told = [
        f"<li>Iteration {row['iteration']}: {escape('; '.join(row['breaches']))}</li>"
        for row in rows
        if row.get("breaches")
    ]
    published = (
        f"The large dots mark iteration {chosen}, whose policy was {_fate(report)}."
        if chosen
        else "No policy that scored above the start kept the governor's bounds on fresh answers."
        if report.finals
        else "No iteration scored above the start within the governor's bounds."
    )
    breaches = f"<p>Beyond the governor's bounds:</p><ul>{''.join(told)}</ul>" if told else ""
    return f'<div class="governor"><p>{published}</p>{breaches}</div>'


def _fate(report: CycleReport) -> str:
    """Of the chosen policy: what its fresh answers earned may still have kept it back."""
    return "published" if report.adapter else "chosen, and not published"


def _finals(report: CycleReport) -> str:
    """How the best policies did once more, on answers that nothing was learnt from."""
    if not report.finals:
        return ""
    rows = "".join(
        f'<tr><th scope="row">Iteration {final["iteration"]}</th>'
        + "".join(f'<td class="number">{text}</td>' for text in _final_cells(final))
        + f"<td>{_verdict(report, final)}</td></tr>"
        for final in report.finals
    )
    titles = ("Policy", "Reward", "KL", "Perplexity, times the base's", "Topic", "The base's topic", "")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        "<h3>Finals: the best policies once more, on fresh answers</h3>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _verdict(report: CycleReport, final: Mapping[str, Any]) -> str:
    if final["breaches"]:
        return escape("; ".join(final["breaches"]))
    if not final["iteration"]:
        return "the start"
    return _fate(report) if final["iteration"] == report.chosen else ""


def _final_cells(final: Mapping[str, Any]) -> tuple[str, ...]:
    forms = {"score": "{:+.2f}", "kl": "{:.1f}", "perplexity": "{:.2f}", "topic": "{:.2f}", "base_topic": "{:.2f}"}
    return tuple(form.format(final[name]) for name, form in forms.items())


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    totals: dict[str, float] = {}
    for row in rows:
        for phase, seconds in (row.get("seconds") or {}).items():
            totals[phase] = totals.get(phase, 0.0) + float(seconds)
    whole = sum(totals.values())
    if whole <= 0:
        return ""
    parts = "".join(
        f'<span class="p{index % _COLOURS}" style="flex-grow:{seconds / whole:.4f}"></span>'
        for index, seconds in enumerate(totals.values())
    )
    names = "".join(
        f'<li class="p{index % _COLOURS}">{escape(_PHASES.get(name, name))} {_duration(seconds)}, '
        f"{seconds / whole:.0%}</li>"
        for index, (name, seconds) in enumerate(totals.items())
    )
    return f'<h3>Time of PPO: {_duration(whole)}</h3><div class="times">{parts}</div><ul class="keys">{names}</ul>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def last_question(prompt: str) -> str:
    """The last question of a decoded ChatML prompt (role names stand on lines of their own); of another, all of it."""
    return _TURN.split(prompt)[-1].strip().removesuffix("assistant").strip()


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    return "".join(
        f'<article class="sample"><h3 dir="auto">{escape(last_question(one["prompt"]))}</h3>'
        f'<div><h4>Before</h4><p dir="auto">{escape(one["before"])}</p></div>'
        f'<div class="after"><h4>After</h4><p dir="auto">{escape(one["after"])}</p></div></article>'
        for one in samples
    )


def _slices(judgement: Mapping[str, Any]) -> str:
    rows = {"all": (judgement["accuracy"], judgement["votes"]), **judgement["slices"]}
    cells = []
    for name, (accuracy, count) in rows.items():
        low, high = wilson(accuracy, int(count))
        interval = f'<i style="left:{low:.1%};width:{high - low:.1%}"></i><u style="left:{accuracy:.1%}"></u>'
        cells.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="number">{accuracy:.2f}</td>'
            f'<td><div class="bar">{interval}</div></td><td class="number">{int(count)}</td></tr>'
        )
    titles = ("Votes", "Right", "95% interval, from 0 to 1", "Count")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table>"


def _figures(figures: Mapping[str, float]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{value:.4g}</td></tr>'
        for name, value in figures.items()
    )
    return f'<div class="wide"><table>{cells}</table></div>'
