"""Simulated voters: one hidden taste, and the faults that people have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from feedback.comparisons import POSITIONS, places
from feedback.contracts import Choice, Message, PairChoice, Position, Ranking
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
    """A vote on a pair, and what an honest and careful voter would have said."""

    choice: PairChoice
    honest: PairChoice

    @property
    def decisive(self) -> bool:
        """Whether it names a winner."""
        return self.choice in {"a", "b"}

    @property
    def said(self) -> dict[str, object]:
        """The vote as it is posted."""
        return {"choice": self.choice}

    @property
    def agreement(self) -> float:
        """1 where the winner is the honest one, else 0."""
        return float(self.choice == self.honest)

    @property
    def left(self) -> float:
        """1 where the left answer won."""
        return float(self.choice == "a")


@dataclass(frozen=True, slots=True)
class RankedBallot:
    """A vote on three or four answers, and how an honest and careful voter would have placed them.

    Attributes:
        ranking: places; None where `choice` says the same of all.
        honest: places; one where all are alike.
    """

    choice: Choice
    ranking: Ranking | None
    honest: tuple[tuple[str, ...], ...]

    @property
    def decisive(self) -> bool:
        """Whether it sets one answer above another."""
        return self.ranking is not None

    @property
    def said(self) -> dict[str, object]:
        """The vote as it is posted."""
        return {"choice": self.choice} if self.ranking is None else {"ranking": self.ranking}

    @property
    def agreement(self) -> float:
        """Share of the comparisons that it decides which an honest voter would have decided so; 0 without any."""
        mine, theirs = places(self.ranking or ()), {at: n for n, place in enumerate(self.honest) for at in place}
        decided = [(a, b) for a, b in combinations(mine, 2) if mine[a] != mine[b]]
        agreed = sum(theirs[a] != theirs[b] and (mine[a] < mine[b]) == (theirs[a] < theirs[b]) for a, b in decided)
        return agreed / len(decided) if decided else 0.0

    @property
    def left(self) -> float:
        """1 where answer a came first, its share where it shares the place."""
        best = self.ranking[0] if self.ranking else ()
        return 1 / len(best) if "a" in best else 0.0


def honest_choice(hidden: Utility, temper: Temper, messages: Sequence[Message], a: str, b: str) -> PairChoice:
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


def honest_ranking(hidden: Utility, temper: Temper, messages: Sequence[Message], answers: Sequence[str]) -> Ranking:
    """Places by the taste alone; who is worse than the best of a place by no more than the margin of ties shares it."""
    margin = hidden.tie_margin if temper.tie_margin is None else temper.tie_margin
    scores = {position: hidden.score(messages, text) for position, text in zip(POSITIONS, answers, strict=False)}
    ranking: list[list[Position]] = []
    for position in sorted(scores, key=lambda at: (-scores[at], at)):
        if ranking and scores[ranking[-1][0]] - scores[position] <= margin:
            ranking[-1].append(position)
        else:
            ranking.append([position])
    return tuple(tuple(place) for place in ranking)


def rank(
    hidden: Utility, temper: Temper, messages: Sequence[Message], answers: Sequence[str], *, rng: random.Random
) -> RankedBallot:
    """What a voter says of three or four answers; each two neighbouring places are confused as a pair would be."""
    honest = honest_ranking(hidden, temper, messages, answers)
    careless, harsh = rng.random(), rng.random()
    wrong = [rng.random() < temper.noise for _ in answers[1:]]
    if careless < temper.side_bias:
        return RankedBallot("ranking", tuple((position,) for position in POSITIONS[: len(answers)]), honest)
    if len(honest) == 1:
        return RankedBallot("both_bad" if harsh < temper.both_bad else "tie", None, honest)
    said = list(honest)
    for above in range(len(said) - 1):
        if wrong[above]:
            said[above], said[above + 1] = said[above + 1], said[above]
    return RankedBallot("ranking", tuple(said), honest)
