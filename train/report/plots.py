"""Plots as inline SVG: numbers in, markup out. Colours and type are the page's (report.css)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 340.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 10.0, 12.0, 30.0
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Axes:
    """Where numbers lie on the drawing: both ranges are wide enough for their round ticks."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        """Pixels of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a plot.

    Attributes:
        points: those with a number that isn't finite are left out.
        style: CSS class: `main`, or `second` beside another.
        name: for the legend and the points' tips.
        spread: half the height of a band around each point, if there is one.
        marked: indices (in `points`) drawn large.
    """

    points: Sequence[Point]
    style: str = "main"
    name: str = ""
    spread: Sequence[float] = ()
    marked: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """What to draw.

    Attributes:
        title: says what is seen; `note` says in what unit, or how to read it.
        levels: horizontal lines by name; walls: vertical ones.
        whole: x takes whole numbers only.
        within: bounds that the y axis must cover; it covers every point and level anyway.
    """

    title: str
    note: str = ""
    lines: Sequence[Line] = ()
    levels: Mapping[str, float] = field(default_factory=dict)
    walls: Mapping[str, float] = field(default_factory=dict)
    x_name: str = "iteration"
    whole: bool = True
    within: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there is anything to draw."""
        return any(_finite(line.points) for line in self.lines)


def draw(plot: Plot) -> str:
    """The plot as a `<figure>`."""
    drawn = [(line, _finite(line.points)) for line in plot.lines]
    xs = [x for line in plot.lines for x, _ in line.points if math.isfinite(x)] + list(plot.walls.values())
    ys = [y for _, points in drawn for _, y in points] + [*plot.levels.values(), *plot.within]
    ys += [
        y + sign * half
        for line in plot.lines
        for (_, y), half in zip(line.points, line.spread, strict=False)
        for sign in (1, -1)
    ]
    axes = Axes(_padded(xs, whole=plot.whole), _round_range(ys))
    parts = [
        _grid(axes, ticks(*axes.y), _whole_ticks(axes.x) if plot.whole else ticks(*axes.x)),
        *(_level(axes, name, value) for name, value in plot.levels.items()),
        *(_wall(axes, name, value) for name, value in plot.walls.items()),
        *(_line(axes, line, points, plot.x_name) for line, points in drawn),
        _text(WIDTH - RIGHT, HEIGHT - 2, plot.x_name, "end"),
    ]
    return figure(plot.title, plot.note, "".join(parts), _legend(plot.lines))


def calibration(bins: Sequence[Mapping[str, float]]) -> str:
    """How often the reward model was right, against how sure it was, with 95% Wilson intervals."""
    axes = Axes((0.5, 1.0), (0.0, 1.0))
    (x1, y1), (x2, y2) = axes.at(0.5, 0.5), axes.at(1.0, 1.0)
    parts = [
        _grid(axes, [0, 0.25, 0.5, 0.75, 1], [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        f'<line class="ideal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>',
    ]
    for one in bins:
        low, high = wilson(one["accuracy"], int(one["count"]))
        x, y = axes.at(one["confidence"], one["accuracy"])
        (_, bottom), (_, top) = axes.at(0.5, low), axes.at(0.5, high)
        tip = f"{int(one['count'])} votes: sure to {one['confidence']:.2f}, right in {one['accuracy']:.2f}"
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" y1="{bottom:.1f}" x2="{x:.1f}" y2="{top:.1f}"/>'
            f'<circle class="dot main" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 0.4 * math.sqrt(one["count"]):.1f}">'
            f"<title>{tip}</title></circle>"
        )
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 2, "how sure", "end"))
    note = "how often right, by how sure it was; on the dashed line it keeps its word"
    return figure("Calibration", note, "".join(parts))


def figure(title: str, note: str, drawing: str, after: str = "") -> str:
    """A `<figure>` around the SVG markup `drawing`; the HTML `after` comes below it."""
    label = escape(f"{title}: {note}" if note else title, quote=True)
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}">{drawing}</svg>{after}</figure>'
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% interval of a share of `count` (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z2 = _Z**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return middle - half, middle + half


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from low to high, bounds included: steps of 1, 2 or 5 times a power of 10."""
    step = _step(high - low, about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _step(span: float, about: int) -> float:
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor for factor in (1, 2, 5, 10) if factor * power >= rough - 1e-12) * power


def _round_range(values: Sequence[float]) -> tuple[float, float]:
    real = [value for value in values if math.isfinite(value)]
    low, high = min(real, default=0.0), max(real, default=1.0)
    if high - low < 1e-9 * max(abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    step = _step(high - low, 4)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _padded(values: Sequence[float], *, whole: bool) -> tuple[float, float]:
    if not whole:
        return _round_range([0.0, *values])
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low, low + 1)


def _whole_ticks(bounds: tuple[float, float]) -> list[float]:
    step = max(1, round(_step(bounds[1] - bounds[0], 8)))
    return [float(x) for x in range(math.ceil(bounds[0]), math.floor(bounds[1]) + 1, step)]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _grid(axes: Axes, at_y: Sequence[float], at_x: Sequence[float]) -> str:
    rows = []
    for y in at_y:
        _, up = axes.at(axes.x[0], y)
        rows.append(f'<line class="grid" x1="{LEFT}" y1="{up:.1f}" x2="{WIDTH - RIGHT}" y2="{up:.1f}"/>')
        rows.append(_text(LEFT - 6, up + 4, f"{y + 0.0:g}" if abs(y) > 1e-12 else "0", "end"))
    rows += [_text(axes.at(x, axes.y[0])[0], HEIGHT - 15, f"{x:g}", "middle") for x in at_x]
    return "".join(rows)


def _level(axes: Axes, name: str, value: float) -> str:
    _, y = axes.at(axes.x[0], value)
    line = f'<line class="ideal" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
    return line + _text(WIDTH - RIGHT - 2, y - 4, name, "end")


def _wall(axes: Axes, name: str, value: float) -> str:
    x, _ = axes.at(value, axes.y[0])
    line = f'<line class="ideal" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>'
    return line + _text(x - 4, HEIGHT - BOTTOM - 6, name, "end")


def _line(axes: Axes, line: Line, points: Sequence[Point], x_name: str) -> str:
    band = _band(axes, points, line.spread) if len(line.spread) == len(points) > 0 else ""
    places = [axes.at(x, y) for x, y in points]
    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = []
    for index, ((x, y), (at_x, at_y)) in enumerate(zip(points, places, strict=True)):
        tip = f"{line.name + ', ' if line.name else ''}{x_name} {x:.4g}: {y:.4g}"
        large = index in line.marked
        dots.append(
            f'<circle class="dot {line.style}{" marked" if large else ""}" cx="{at_x:.1f}" cy="{at_y:.1f}" '
            f'r="{5.5 if large else 3}"><title>{escape(tip)}</title></circle>'
        )
    return f'{band}<polyline class="curve {line.style}" points="{curve}"/>{"".join(dots)}'


def _band(axes: Axes, points: Sequence[Point], spread: Sequence[float]) -> str:
    def edge(sign: int) -> list[Point]:
        low, high = axes.y
        return [axes.at(x, min(max(y + sign * half, low), high)) for (x, y), half in zip(points, spread, strict=True)]

    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*edge(1), *reversed(edge(-1))])
    return f'<polygon class="band" points="{outline}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(lines: Sequence[Line]) -> str:
    named = [line for line in lines if line.name]
    if len(named) < 2:
        return ""
    return '<p class="legend">' + "".join(f'<span class="{x.style}">{escape(x.name)}</span>' for x in named) + "</p>"
