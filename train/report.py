"""A cycle's report: one HTML file with inline SVG plots, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from train.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #3159c9; --grid: #d5d9e2; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a1b3; --line: #86a5ff; --grid: #343b4a;
  --paper: #151922 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 } svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--soft) }
.curve { fill: none; stroke: var(--line); stroke-width: 2 } .dot { fill: var(--line) }
.axis { stroke: var(--grid); stroke-width: 1 } .ideal { stroke: var(--soft); stroke-dasharray: 4 4 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } .wide { overflow-x: auto }
td, th { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--grid) }
td.number { text-align: right; font-variant-numeric: tabular-nums } td.text { white-space: pre-wrap; width: 33% }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 320.0, 180.0, 44.0, 24.0, 10.0
_PLOTS = {
    "score": "Reward (standard deviations of voted answers)",
    "kl": "KL to the base (nats an answer)",
    "clip_fraction": "Clip fraction",
    "length": "Length (tokens)",
    "entropy": "Entropy (nats a token)",
    "distinct_within": "Distinct bigrams within an answer",
    "perplexity": "Perplexity under the base",
    "explained_variance": "Explained variance of the values",
}


def write_report(
    path: Path,
    *,
    title: str,
    figures: Mapping[str, float],
    iterations: Sequence[Mapping[str, Any]],
    judgement: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
) -> None:
    """Write the report.

    Args:
        path: of the file.
        title: heading.
        figures: name and value, for the table.
        iterations: PPO's metrics, one mapping an iteration.
        judgement: the reward model's, as `reward.judge.Judgement`'s fields.
        samples: `prompt`, `before` and `after` each.
    """
    plots = [_line_plot(text, [one[name] for one in iterations]) for name, text in _PLOTS.items()]
    plots.append(_calibration_plot(judgement["calibration"]))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<section class="plots">{"".join(plots)}</section>',
        "<h2>Answers before and after</h2>",
        _sample_table(samples),
        "<h2>Reward model on held-out votes</h2>",
        _slice_table(judgement),
        "<h2>Figures</h2>",
        _figure_table(figures),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(body)}</body></html>'
    )
    write_text(path, page)


def _line_plot(caption: str, values: Sequence[float]) -> str:
    real = [(x, float(y)) for x, y in enumerate(values) if y is not None and math.isfinite(float(y))]
    low, high = _range([y for _, y in real])
    points = [(_x(x, 0, max(len(values) - 1, 1)), _y(y, low, high)) for x, y in real]
    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    inner = f'<polyline class="curve" points="{curve}"/>{dots}'
    return _figure(caption, inner, (low, high), (0, max(len(values) - 1, 1)))


def _calibration_plot(bins: Sequence[Mapping[str, float]]) -> str:
    ideal = f'<line class="ideal" x1="{_x(0.5, 0.5, 1)}" y1="{_y(0.5, 0, 1)}" x2="{_x(1, 0.5, 1)}" y2="{_y(1, 0, 1)}"/>'
    dots = "".join(
        f'<circle class="dot" cx="{_x(b["confidence"], 0.5, 1):.1f}" cy="{_y(b["accuracy"], 0, 1):.1f}" '
        f'r="{2 + math.sqrt(b["count"]):.1f}" fill-opacity="0.6"/>'
        for b in bins
    )
    return _figure("Calibration: how often right, by how sure", ideal + dots, (0.0, 1.0), (0.5, 1.0))


def _figure(caption: str, inner: str, y_range: tuple[float, float], x_range: tuple[float, float]) -> str:
    floor = _HEIGHT - _BOTTOM
    axes = (
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDTH}" y2="{floor}"/>'
        f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{floor}"/>'
        f'<text x="{_LEFT - 4}" y="{floor}" text-anchor="end">{y_range[0]:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{y_range[1]:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{x_range[0]:g}</text>'
        f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 6}" text-anchor="end">{x_range[1]:g}</text>'
    )
    label = escape(caption, quote=True)
    svg = f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{label}">{axes}{inner}</svg>'
    return f"<figure><figcaption>{label}</figcaption>{svg}</figure>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 8) * (value - low) / (high - low)


def _y(value: float, low: float, high: float) -> float:
    return _TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - (value - low) / (high - low))


def _sample_table(samples: Sequence[Mapping[str, str]]) -> str:
    rows = "".join(
        "<tr>" + "".join(f'<td class="text">{escape(one[key])}</td>' for key in ("prompt", "before", "after")) + "</tr>"
        for one in samples
    )
    return f'<div class="wide"><table><tr><th>Prompt</th><th>Before</th><th>After</th></tr>{rows}</table></div>'


def _slice_table(judgement: Mapping[str, Any]) -> str:
    rows = {"all": (judgement["accuracy"], judgement["votes"]), **judgement["slices"]}
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{accuracy:.3f}</td><td class="number">{count}</td></tr>'
        for name, (accuracy, count) in rows.items()
    )
    return f"<table><tr><th>Votes</th><th>Accuracy</th><th>Count</th></tr>{cells}</table>"


def _figure_table(figures: Mapping[str, float]) -> str:
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{value:.4g}</td></tr>' for name, value in figures.items()
    )
    return f"<table><tr><th>Figure</th><th>Value</th></tr>{cells}</table>"
