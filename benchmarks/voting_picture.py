"""The picture of the attack budget: shift of the win rate over the number of attackers, as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 860, 430
LEFT, TOP, RIGHT, BOTTOM = 56, 34, 270, 46
MOST_POINTS = 10.0
COLOURS = ("#6b7280", "#0891b2", "#b91c1c", "#7c3aed", "#c2850c")


def picture(found: Sequence[dict[str, Any]]) -> str:
    """Dashed lines are without the defences, whole ones with them; the band is the target."""
    most = max(found[0]["counts"])

    def place(count: float, points: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * count / most
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (min(points, MOST_POINTS) + 1) / (MOST_POINTS + 1)

    def line(counts: Sequence[int], points: Sequence[float], style: str) -> str:
        places = [place(0, 0), *(place(c, p) for c, p in zip(counts, points, strict=True) if p <= MOST_POINTS)]
        return f'<polyline fill="none" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" {style}/>'

    parts = [_band(place(0, 1), place(most, -1)), *_axes(place, most)]
    for row, colour in zip(found, COLOURS, strict=True):
        style = f'stroke="{colour}" stroke-width="2.2" stroke-linejoin="round"'
        parts.append(line(row["counts"], row["without"], f'{style} stroke-dasharray="5 4" opacity="0.75"'))
        parts.append(line(row["counts"], row["with"], style))
    parts += _legend([row["attack"] for row in found])
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    title = "<title>Shift of the measured win rate by attackers, with and without the defences</title>"
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head, title, ground, *parts, "</svg>", ""])


def _band(top_left: tuple[float, float], bottom_right: tuple[float, float]) -> str:
    (x, y), (far, low) = top_left, bottom_right
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{far - x:.1f}" height="{low - y:.1f}" fill="#dcfce7"/>'


def _axes(place: Any, most: int) -> list[str]:
    parts = []
    for points in range(0, int(MOST_POINTS) + 1, 2):
        (x, y), (far, _) = place(0, points), place(most, points)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{far:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#4b5563">{points}</text>')
    for count in range(0, most + 1, 10):
        x, y = place(count, -1)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle" fill="#4b5563">{count}</text>')
    x, y = place(most / 2, -1)
    parts.append(f'<text x="{x:.1f}" y="{y + 38:.1f}" text-anchor="middle">attackers among 200 voters</text>')
    parts.append(f'<text x="{LEFT - 34}" y="{TOP - 14}">shift of the win rate, points (green: under one)</text>')
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    x = WIDTH - RIGHT + 18
    parts = []
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        y = TOP + 20 + 24 * index
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="{colour}" stroke-width="2.2"/>')
        parts.append(f'<text x="{x + 32}" y="{y + 4}">{name}</text>')
    y = TOP + 36 + 24 * len(names)
    for index, (dash, said) in enumerate((("", "with the defences"), ("5 4", "without"))):
        at = y + 22 * index
        parts.append(f'<line x1="{x}" y1="{at}" x2="{x + 24}" y2="{at}" stroke="#111" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{x + 32}" y="{at + 4}">{said}</text>')
    return parts
