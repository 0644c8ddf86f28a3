"""Simulated voters: one hidden taste, and the faults that people have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from feedback.contracts import Choice, Message
from feedback.simulator.utilities import Utility


@dataclass(frozen=True, slots=True)
class Temper:
    """How a voter errs.

    Attributes:
        noise: probability that a decisive vote goes to the worse answer.
        side_bias: probability that the vote goes to the left answer without a look.
        both_bad: probability that what would be a tie is called both bad.
        tie_margin: scores this close are a tie; None takes the utility's own margin.
    """

    noise: float = 0.15
    side_bias: float = 0.05
    both_bad: float = 0.1
    tie_margin: float | None = None


@dataclass(frozen=True, slots=True)
class Ballot:
    """A vote, and what an honest and careful voter would have said."""

    choice: Choice
    honest: Choice

    @property
    def decisive(self) -> bool:
        """Whether it names a winner."""
        return self.choice in {"a", "b"}


def honest_choice(hidden: Utility, temper: Temper, messages: Sequence[Message], a: str, b: str) -> Choice:
    """What the taste alone says."""
    margin = hidden.margin(messages, a, b)
    if abs(margin) <= (hidden.tie_margin if temper.tie_margin is None else temper.tie_margin):
        return "tie"
    return "a" if margin > 0 else "b"


def vote(hidden: Utility, temper: Temper, messages: Sequence[Message], a: str, b: str, *, rng: random.Random) -> Ballot:
    """What a voter of this taste and temper says of answers `a` (left) and `b`; only `rng` is chance."""
    honest = honest_choice(hidden, temper, messages, a, b)
    # All three are drawn whatever comes of it, so that one vote's fate never shifts another's chance.
    careless, wrong, harsh = rng.random(), rng.random(), rng.random()
    if careless < temper.side_bias:
        return Ballot("a", honest)
    if honest == "tie":
        return Ballot("both_bad" if harsh < temper.both_bad else "tie", honest)
    if wrong < temper.noise:
        return Ballot("b" if honest == "a" else "a", honest)
    return Ballot(honest, honest)
