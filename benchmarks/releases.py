"""The vote-driven gate by simulation: how often it promotes a candidate that is no better, and how many votes it needs.

    python -m benchmarks.releases [--runs 10000] [--out FILE]

Elections are looked at after every vote, by the rules and with the defaults of `serve.releases`. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve.config import CanaryConfig
from serve.releases.sequential import BETS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CHUNK = 250
VOTE_S = 20.0
"""Seconds between two votes."""


@dataclass(frozen=True, slots=True)
class People:
    """Who votes.

    Attributes:
        win_rate: mean of the voters' own probabilities to prefer the candidate, where they look.
        spread: standard deviation of these probabilities among voters; 0: all alike.
        voters: so many people.
        heavy: exponent of how much a voter votes (the k-th in proportion to 1/k**heavy); 0: all alike.
        sitting: where set, people come four at a time, and each casts so many votes and leaves.
        ties: share of votes that name no winner.
        left: share of votes for the left answer without a look.
        coins: share of the voters who vote by a coin, always.
        trusted: weigh ballots by a trust that knows most of the coins (`trust`).
    """

    win_rate: float = 0.5
    spread: float = 0.0
    voters: int = 400
    heavy: float = 0.0
    ties: float = 0.2
    left: float = 0.0
    sitting: int | None = None
    coins: float = 0.0
    trusted: bool = False


def trust(people: People, runs: int, voters: int, rng: np.random.Generator) -> Floats:
    """What each voter's ballot weighs, (runs, voters): drawn by what the voter is, never by how the ballot turns out.

    Coins weigh 0.47 on average and careful people 0.99, as docs/voting.md finds with 5% planted pairs and 100 votes.
    """
    if not people.trusted:
        return np.ones((runs, voters))
    coin = _coins(people, voters)
    careful = 1 - 0.1 * (rng.random((runs, voters)) < 0.1)
    return np.where(coin, rng.beta(0.47, 0.53, (runs, voters)), careful)


def _coins(people: People, voters: int) -> npt.NDArray[np.bool_]:
    """Who votes by a coin: every k-th voter, busy ones and others alike."""
    return np.arange(voters) % 100 * 0.01 < people.coins if people.coins else np.zeros(voters, dtype=bool)


def votes(people: People, runs: int, length: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Voter and score (1 candidate, 0 office-holder, 0.5 tie) of each vote, both of shape (runs, length)."""
    if people.sitting is not None:
        turn = np.arange(length)
        crew = 4 * people.sitting
        people = replace(people, voters=4 * math.ceil(length / crew))
        voter = np.broadcast_to(4 * (turn // crew) + turn % 4, (runs, length))
    else:
        voter = _drawn(people, runs, length, rng)
    taste = np.full((runs, people.voters), people.win_rate)
    if people.spread:
        mass = people.win_rate * (1 - people.win_rate) / people.spread**2 - 1
        taste = rng.beta(people.win_rate * mass, (1 - people.win_rate) * mass, (runs, people.voters))
    taste = np.where(_coins(people, people.voters), 0.5, taste)
    wins = rng.random((runs, length)) < np.take_along_axis(taste, voter, axis=1)
    on_the_left = rng.random((runs, length)) < 0.5
    blind = rng.random((runs, length)) < people.left
    score = np.where(blind, on_the_left, wins).astype(np.float64)
    return voter, np.where(rng.random((runs, length)) < people.ties, 0.5, score)


def _drawn(people: People, runs: int, length: int, rng: np.random.Generator) -> Ints:
    """Who casts each vote, drawn by how much each person votes."""
    weights = 1.0 / np.arange(1, people.voters + 1) ** people.heavy
    drawn = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random((runs, length)))
    return np.asarray(drawn.clip(max=people.voters - 1), dtype=np.int64)


def ballots(voter: Ints, score: Floats, size: int, idle_s: float, vote_s: float = VOTE_S) -> tuple[Floats, Floats]:
    """What `serve.releases.ballots` makes of votes that come every `vote_s` seconds.

    Returns:
        Of each voter's ballot the time at which it closes (infinity: there is none) and its mean, both (runs, voters).
    """
    runs, length = voter.shape
    people = int(voter.max()) + 1
    order = np.argsort(voter, axis=1, kind="stable")
    who, what = np.take_along_axis(voter, order, 1), np.take_along_axis(score, order, 1)
    when = order * vote_s
    place = np.arange(length)
    first = np.ones_like(who, dtype=bool)
    first[:, 1:] = who[:, 1:] != who[:, :-1]
    start = np.maximum.accumulate(np.where(first, place, 0), axis=1)
    away = np.zeros_like(first)
    away[:, 1:] = ~first[:, 1:] & (when[:, 1:] - when[:, :-1] >= idle_s)
    absences = np.cumsum(away, axis=1)
    absences = absences - np.take_along_axis(absences, start, 1)
    counted = (place - start < size) & (absences == 0)
    ballot = (np.arange(runs)[:, None] * people + who)[counted]
    filled = np.bincount(ballot, minlength=runs * people)
    total = np.bincount(ballot, what[counted], minlength=runs * people)
    last = np.zeros(runs * people)
    np.maximum.at(last, ballot, when[counted])
    closes = np.where(filled >= size, last, last + idle_s)
    closes[filled == 0] = np.inf
    mean = total / np.maximum(filled, 1)
    return closes.reshape(runs, people), mean.reshape(runs, people)


def log_capital(observations: Floats, null: float = 0.5, weight: Floats | float = 1.0) -> Floats:
    """Log capital against "the mean is at most null" after each observation; shape (runs, length), as given.

    The same as `serve.releases.sequential`, for many runs at once. NaN observations are passed over.
    """
    gain = weight * (np.nan_to_num(observations, nan=null) / null - 1.0)  # at fair odds the null itself pays nothing
    paths = [np.cumsum(np.log(1.0 + bet * gain), axis=1) for bet in BETS]
    top = np.maximum.reduce(paths)
    return np.asarray(top + np.log(sum(np.exp((path - top).astype(np.float32)) for path in paths) / len(BETS)))


def decided(
    people: People, config: CanaryConfig, runs: int, rng: np.random.Generator, length: int
) -> tuple[Ints, Ints]:
    """Votes after which each of `runs` elections promotes, and rejects; `length` + 1 where it doesn't."""
    won, lost = [], []
    for _ in range(math.ceil(runs / CHUNK)):
        voter, score = votes(people, CHUNK, length, rng)
        if config.by_voter:
            closes, mean = ballots(voter, score, config.ballot_votes, config.ballot_idle_s)
            weight = trust(people, CHUNK, closes.shape[1], rng)
            order = np.argsort(closes, axis=1)
            weight = np.take_along_axis(weight, order, 1)
            at = np.take_along_axis(closes, order, 1)
            seen = np.where(np.isfinite(at), np.take_along_axis(mean, order, 1), np.nan)
            after = np.where(np.isfinite(at), np.ceil(at / VOTE_S) + 1, length + 1)
        else:
            seen, after = score, np.broadcast_to(np.arange(1.0, length + 1), score.shape)
            weight = np.take_along_axis(trust(people, CHUNK, int(voter.max()) + 1, rng), voter, 1)
        needed = -math.log(config.alpha)
        won.append(_first(log_capital(seen, weight=weight) >= needed, np.maximum(after, config.min_votes), length))
        lost.append(_first(log_capital(1.0 - seen, weight=weight) >= needed, after, length))
    return np.concatenate(won)[:runs], np.concatenate(lost)[:runs]


def z_test_with_peeks(people: People, runs: int, rng: np.random.Generator, length: int, least: int = 30) -> float:
    """Share of elections in which a one-sided z-test at 5%, repeated after every vote, ever says better."""
    crossed = 0
    for _ in range(math.ceil(runs / CHUNK)):
        _, score = votes(people, CHUNK, length, rng)
        count = np.arange(1, length + 1)
        mean = np.cumsum(score, axis=1) / count
        deviation = np.sqrt(np.maximum(np.cumsum(score**2, axis=1) / count - mean**2, 1e-9) / count)
        crossed += int(((mean - 0.5) / deviation > 1.645)[:, least - 1 :].any(axis=1).sum())
    return crossed / (CHUNK * math.ceil(runs / CHUNK))


def fixed_sample(win_rate: float, power: float) -> int:
    """Votes that a one-sided z-test at 5% needs, all of them cast before its only look."""
    from scipy.stats import norm

    spread = norm.ppf(0.95) * 0.5 + norm.ppf(power) * math.sqrt(win_rate * (1 - win_rate))
    return math.ceil(float(spread / (win_rate - 0.5)) ** 2)


def _first(crossed: npt.NDArray[np.bool_], after: Floats, length: int) -> Ints:
    """The votes of the first crossing that lies within `length` votes."""
    times = np.where(crossed & (after <= length), after, length + 1)
    return np.asarray(times.min(axis=1), dtype=np.int64)


NO_DIFFERENCE = {
    "everybody alike": People(),
    "position bias: 30% vote left without a look": People(left=0.3),
    "heavy voters: 200 people, ten of them cast half of the votes": People(voters=200, heavy=1.0),
    "heavy voters whose tastes differ (sd 0.25)": People(voters=200, heavy=1.0, spread=0.25),
    "the same and position bias": People(voters=200, heavy=1.0, spread=0.25, left=0.3),
    "a third votes by a coin, ballots weighed by trust": People(coins=0.33, trusted=True),
    "heavy voters of different taste, a third coins, weighed": People(
        voters=200, heavy=1.0, spread=0.25, left=0.3, coins=0.33, trusted=True
    ),
}
WIN_RATES = (0.55, 0.6, 0.7)


def report(runs: int, seed: int) -> dict[str, object]:
    """All figures, as JSON takes them."""
    config = CanaryConfig()
    strangers = CanaryConfig(by_voter=False)
    length = config.max_votes
    false = {}
    for name, people in NO_DIFFERENCE.items():
        rates = {}
        for kind, rules in (("ballots", config), ("every vote counts", strangers)):
            won, _ = decided(people, rules, runs, np.random.default_rng(seed), length)
            rates[kind] = round(float((won <= length).mean()), 4)
        rates["z-test at every vote"] = round(z_test_with_peeks(people, runs, np.random.default_rng(seed), length), 4)
        false[name] = rates
    needed = {}
    for rate in WIN_RATES:
        row = {"fixed sample, power 0.5": fixed_sample(rate, 0.5), "fixed sample, power 0.8": fixed_sample(rate, 0.8)}
        for kind, rules, people in (
            ("one vote a person", strangers, People(rate, ties=0.0)),
            ("five votes a person", config, People(rate, ties=0.0, sitting=5)),
        ):
            won, _ = decided(people, rules, runs, np.random.default_rng(seed), 2 * length)
            row |= {f"{kind}, median": int(np.median(won)), f"{kind}, 80%": int(np.quantile(won, 0.8))}
        for kind, trusted in (("a third coins, not weighed", False), ("a third coins, weighed", True)):
            people = People(rate, ties=0.0, sitting=5, coins=0.33, trusted=trusted)
            won, _ = decided(people, config, runs, np.random.default_rng(seed), 2 * length)
            row |= {f"{kind}, median": int(np.median(won)), f"{kind}, 80%": int(np.quantile(won, 0.8))}
        needed[str(rate)] = row
    return {"runs": runs, "seed": seed, "config": asdict_of(config), "false promotions": false, "votes needed": needed}


def asdict_of(config: CanaryConfig) -> dict[str, object]:
    """The settings that matter here."""
    return config.model_dump(include={"alpha", "ballot_votes", "ballot_idle_s", "min_votes", "max_votes"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.perf_counter()
    found = report(arguments.runs, arguments.seed)
    text = json.dumps(found, indent=1)
    print(text)
    print(f"{time.perf_counter() - began:.0f} s")
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
