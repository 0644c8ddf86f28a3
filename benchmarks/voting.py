"""The attack budget: how many of 200 voters it takes to move a measured win rate by one point (docs/voting.md).

    python -m benchmarks.voting                    # the table, as Markdown
    python -m benchmarks.voting --picture FILE.svg --json FILE.json

An election of 200 voters who cast 40 votes each: 5% of the pairs planted, half of the rest adapter X against the base,
of which careful voters prefer X in 55% (each at their own rate, standard deviation 0.1), the rest X against itself; 15%
ties. Some voters are replaced by attackers. The shift is the win rate that is measured less the rate of the careful
voters' own votes, in points, mean over the elections; "with" and "without" are the same votes weighed and not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedback.config import VotersConfig
from feedback.voters import Ballots, vote_weights
from feedback.voters.ballots import NO_GOLD, TIE, A, B

VOTERS = 200
COUNTS = (2, 4, 8, 12, 20, 30, 40, 60)
BASE, X = 0, 1
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """How the election is held. `rate`: how often careful voters prefer X; `spread`: how alike they are."""

    votes: int = 40
    rate: float = 0.55
    spread: float = 24.0
    gold: float = 0.05
    ties: float = 0.15


@dataclass(frozen=True)
class Attack:
    """What a kind of attacker does.

    Attributes:
        success: how often they vote for X where it meets the base; None: by the side.
        left: how often they vote left otherwise; None: like a careful voter, planted pairs included.
        activity: votes cast for each vote of a careful voter.
    """

    name: str
    success: float | None = None
    left: float | None = None
    activity: float = 1.0


ATTACKS = (
    Attack("random", left=0.5),
    Attack("always left", left=1.0),
    Attack("coordinated for X, always", success=1.0),
    Attack("coordinated for X, 95% of the time", success=0.95),
    Attack("coordinated for X, ten times as busy", success=1.0, activity=10.0),
    Attack("coordinated for X, one vote in ten of a careful voter's", success=1.0, activity=0.1),
    Attack("stealthy for X, 85% of the time", success=0.85),
    Attack("stealthy for X, 75% of the time", success=0.75),
)
PICTURED = (0, 1, 2, 6, 7)


def election(world: World, attack: Attack, attackers: int, rng: np.random.Generator) -> tuple[Ballots, Bools]:
    """The ballots, and which of them attackers cast."""
    cast = np.full(VOTERS, world.votes)
    cast[:attackers] = max(1, round(world.votes * attack.activity))
    voter = np.repeat(np.arange(VOTERS), cast)
    size = len(voter)
    evil = voter < attackers
    planted = rng.random(size) < world.gold
    contest = ~planted & (rng.random(size) < 0.5)
    left_is_x = rng.random(size) < 0.5
    gold = np.where(planted, rng.integers(0, 2, size), NO_GOLD)
    taste = rng.beta(world.rate * world.spread, (1 - world.rate) * world.spread, VOTERS)
    choice = _careful(rng, taste[voter], contest, planted, left_is_x, gold)
    choice = np.where(rng.random(size) < world.ties * ~planted, TIE, choice)
    if attack.left is not None:
        choice = np.where(evil, np.where(rng.random(size) < attack.left, A, B), choice)
    if attack.success is not None:
        for_x = rng.random(size) < attack.success
        choice = np.where(evil & contest, np.where(for_x == left_is_x, A, B), choice)
    at = 60_000 * np.arange(size)
    ballots = Ballots(
        voters=tuple(f"v{number:03}" for number in range(VOTERS)),
        adapters=("base", "policy-000001"),
        voter=voter.astype(np.int32),
        left=np.where(contest & ~left_is_x, BASE, X).astype(np.int32),
        right=np.where(contest & left_is_x, BASE, X).astype(np.int32),
        choice=choice.astype(np.int8),
        gold=gold.astype(np.int8),
        leak=np.zeros(size, dtype=np.bool_),
        prompt=np.arange(size),
        length_a=np.full(size, 100, dtype=np.int32),
        length_b=np.full(size, 100, dtype=np.int32),
        shown_ms=at,
        cast_ms=at + 20_000,
        part=np.zeros(size, dtype=np.int8),
        among=np.ones(size, dtype=np.int8),
    )
    return ballots, evil


def _careful(
    rng: np.random.Generator,
    taste: Floats,
    contest: Bools,
    planted: Bools,
    left_is_x: Bools,
    gold: NDArray[np.int64],
) -> NDArray[np.int64]:
    size = len(taste)
    for_x = np.where(rng.random(size) < taste, np.where(left_is_x, A, B), np.where(left_is_x, B, A))
    judged = np.where(rng.random(size) < 0.95, gold, 1 - gold)
    return np.where(planted, judged, np.where(contest, for_x, rng.integers(0, 2, size)))


def win_rate(ballots: Ballots, weights: Floats) -> float:
    """Share of the contests' weight that X took; ties give half."""
    points = np.where(
        ballots.choice == TIE, 0.5, (np.where(ballots.choice == A, ballots.left, ballots.right) == X) * 1.0
    )
    counted = weights * ballots.contest
    return float(counted @ points / counted.sum())


def shifts(world: World, attack: Attack, attackers: int, elections: int, config: VotersConfig) -> Floats:
    """(elections, 2) shift in points without and with the defences."""
    found = []
    for seed in range(elections):
        ballots, evil = election(world, attack, attackers, np.random.default_rng([seed, attackers]))
        careful = win_rate(ballots, np.where(evil, 0.0, 1.0))
        plain: Floats = np.ones(len(ballots))
        weighed = vote_weights(ballots, config)
        found.append([100 * (win_rate(ballots, weights) - careful) for weights in (plain, weighed)])
    return np.array(found)


def budget(counts: Sequence[int], moved: Sequence[float]) -> str:
    """How many attackers move the rate by one point, read off between the counts that were tried."""
    before_count, before = 0, 0.0
    for count, shift in zip(counts, moved, strict=True):
        if abs(shift) >= 1:
            between = (count - before_count) * (1 - abs(before)) / (abs(shift) - abs(before))
            return str(max(1, round(before_count + between)))
        before_count, before = count, shift
    return f"more than {counts[-1]}"


def sweep(world: World, attack: Attack, elections: int, config: VotersConfig) -> dict[str, Any]:
    """All counts of one kind of attacker."""
    rows = [shifts(world, attack, count, elections, config) for count in COUNTS]
    without, with_them = ([float(row[:, column].mean()) for row in rows] for column in (0, 1))
    spread = [float(row[:, 1].std()) for row in rows]
    return {"attack": attack.name, "counts": COUNTS, "without": without, "with": with_them, "spread": spread}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The sweeps as Markdown."""
    lines = [
        "| attackers | 8 of 200, without and with | 20 of 200 (10%) | 40 of 200 | for one point, without | with |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        at = {count: index for index, count in enumerate(row["counts"])}
        cells = [
            f"{row['without'][at[count]]:+.1f}, **{row['with'][at[count]]:+.1f}** (sd {row['spread'][at[count]]:.1f})"
            for count in (8, 20, 40)
        ]
        needed = [budget(row["counts"], row[key]) for key in ("without", "with")]
        lines.append(f"| {row['attack']} | {' | '.join(cells)} | {needed[0]} | {needed[1]} |")
    return "\n".join(lines)


def worlds_table(elections: int) -> str:
    """Coordinated attackers, 10%, in other worlds and with the defences changed: how far the result carries."""
    attack, careful = ATTACKS[2], VotersConfig()
    cases: list[tuple[str, World, VotersConfig]] = [
        ("as above", World(), careful),
        ("10 votes a voter", World(votes=10), careful),
        ("20 votes a voter", World(votes=20), careful),
        ("100 votes a voter", World(votes=100), careful),
        ("careful voters prefer X in 70%", World(rate=0.7), careful),
        ("careful voters prefer X in 85%", World(rate=0.85), careful),
        ("strong tastes (standard deviation 0.17)", World(spread=8.0), careful),
        ("nothing planted", World(gold=0.0), careful),
        ("`taste_spread` 16", World(), careful.model_copy(update={"taste_spread": 16.0})),
        ("`taste_spread` 100", World(), careful.model_copy(update={"taste_spread": 100.0})),
    ]
    lines = ["| world | no attackers, with | 20 always for X, without | with |", "|---|---|---|---|"]
    for name, world, config in cases:
        quiet = shifts(world, attack, 0, elections, config)[:, 1]
        plain, weighed = shifts(world, attack, 20, elections, config).T
        lines.append(
            f"| {name} | {quiet.mean():+.2f} (sd {quiet.std():.2f}) | {plain.mean():+.1f} |"
            f" **{weighed.mean():+.1f}** (sd {weighed.std():.1f}) |"
        )
    return "\n".join(lines)


def gold_table(elections: int) -> str:
    """How well planted pairs tell coins from people: mean weight of each after so many votes."""
    lines = ["| planted | votes a voter | weight of a coin | of a careful voter |", "|---|---|---|---|"]
    for gold in (0.0, 0.02, 0.05, 0.1):
        for votes in (20, 40, 100):
            coins, people = [], []
            for seed in range(elections):
                world = replace(World(), gold=gold, votes=votes)
                ballots, evil = election(world, ATTACKS[0], 20, np.random.default_rng([seed, 7]))
                weights, real = vote_weights(ballots, VotersConfig()), ballots.gold == NO_GOLD
                coins.append(weights[evil & real].mean())
                people.append(weights[~evil & real].mean())
            lines.append(f"| {gold:.0%} | {votes} | {np.mean(coins):.2f} | {np.mean(people):.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; write the picture and the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elections", type=int, default=12, help="elections of each kind (default 12)")
    parser.add_argument("--picture", type=Path, help="write the picture here (SVG)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    found = []
    for attack in ATTACKS:
        print(f"… {attack.name}", file=sys.stderr, flush=True)
        found.append(sweep(World(), attack, options.elections, VotersConfig()))
    parts: list[Callable[[], str]] = [
        lambda: table(found),
        lambda: worlds_table(options.elections),
        lambda: gold_table(options.elections),
    ]
    for part in parts:
        print(part() + "\n", flush=True)
    if options.picture:
        from benchmarks.voting_picture import picture

        options.picture.write_text(picture([found[index] for index in PICTURED]), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
