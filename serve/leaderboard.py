"""Standings from the ledger's tallies: win rates, Bradley-Terry strengths, position bias. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from feedback.ledger import Tally

BASE = "base"
_PRIOR = 0.5
"""Virtual half wins and half losses of each contender against the field, so that an unbeaten one stays finite."""
_CONVERGED = 1e-9


@dataclass(frozen=True, slots=True)
class Standing:
    """One contender. `strength` is the Bradley-Terry log-odds of beating an average contender; ties count half."""

    contender: str
    wins: int
    losses: int
    ties: int
    both_bad: int
    win_rate: float | None
    strength: float | None

    @property
    def votes(self) -> int:
        """Votes against another contender."""
        return self.wins + self.losses + self.ties + self.both_bad


def standings(tallies: Iterable[Tally]) -> list[Standing]:
    """Everybody who has met somebody else, the strongest first. Pairs of one adapter with itself say nothing here."""
    counts: dict[str, dict[str, int]] = {}
    points: dict[tuple[str, str], float] = {}
    for tally in tallies:
        a, b = tally.adapter_a or BASE, tally.adapter_b or BASE
        if a == b:
            continue
        for_a, for_b = {"a": ("wins", "losses"), "b": ("losses", "wins")}.get(tally.choice, (tally.choice,) * 2)
        share = {"a": 1.0, "b": 0.0}.get(tally.choice, 0.5)
        for name, kind in ((a, _plural(for_a)), (b, _plural(for_b))):
            mine = counts.setdefault(name, {"wins": 0, "losses": 0, "ties": 0, "both_bad": 0})
            mine[kind] += tally.votes
        points[a, b] = points.get((a, b), 0.0) + share * tally.votes
        points[b, a] = points.get((b, a), 0.0) + (1 - share) * tally.votes
    strengths = bradley_terry(points)
    found = [_standing(name, mine, strengths.get(name)) for name, mine in counts.items()]
    return sorted(found, key=lambda standing: (-(standing.strength or 0.0), standing.contender))


def bradley_terry(points: Mapping[tuple[str, str], float], max_rounds: int = 20_000) -> dict[str, float]:
    """Log-strengths that add up to 0, by Hunter's minorise-maximise steps.

    Args:
        points: (winner, loser) to what the winner took off the loser: wins plus half the ties.

    Each contender also has half a win and half a loss against a virtual one of strength 1.
    """
    names = sorted({name for pair in points for name in pair})
    games = {(i, j): points.get((i, j), 0.0) + points.get((j, i), 0.0) for i in names for j in names if i != j}
    took = {i: sum(points.get((i, j), 0.0) for j in names if j != i) + _PRIOR for i in names}
    strength = dict.fromkeys(names, 1.0)
    for _ in range(max_rounds):
        before = strength
        strength = {
            i: took[i]
            / (2 * _PRIOR / (strength[i] + 1) + sum(games[i, j] / (strength[i] + strength[j]) for j in names if j != i))
            for i in names
        }
        if all(abs(strength[i] / before[i] - 1) < _CONVERGED for i in names):
            break
    logs = {name: math.log(value) for name, value in strength.items()}
    mean = sum(logs.values()) / len(logs) if logs else 0.0
    return {name: value - mean for name, value in logs.items()}


def left_share(tallies: Sequence[Tally]) -> float | None:
    """Share of decisive votes for the left answer; far from a half is position bias. None without such votes."""
    left = sum(tally.votes for tally in tallies if tally.choice == "a")
    right = sum(tally.votes for tally in tallies if tally.choice == "b")
    return left / (left + right) if left + right else None


def choices(tallies: Iterable[Tally]) -> dict[str, int]:
    """Votes by choice."""
    counted = {"a": 0, "b": 0, "tie": 0, "both_bad": 0}
    for tally in tallies:
        counted[tally.choice] += tally.votes
    return counted


def _plural(kind: str) -> str:
    return "ties" if kind == "tie" else kind


def _standing(name: str, mine: dict[str, int], strength: float | None) -> Standing:
    total = sum(mine.values())
    rate = (mine["wins"] + 0.5 * (mine["ties"] + mine["both_bad"])) / total if total else None
    return Standing(
        name,
        mine["wins"],
        mine["losses"],
        mine["ties"],
        mine["both_bad"],
        None if rate is None else round(rate, 4),
        None if strength is None else round(strength, 4),
    )
