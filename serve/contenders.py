"""Who meets whom: a rule is drawn by its share, then left and right, and the probability of just that is kept."""

from __future__ import annotations

import random
from dataclasses import dataclass

from serve.config import ContendersConfig

SELF_PLAY = "self-play"
CANDIDATE = "candidate"
ANCHOR = "anchor"
WATCH = "watch"


@dataclass(frozen=True, slots=True)
class Matchup:
    """Adapters by position (None is the base).

    Attributes:
        propensity: probability of this rule with these adapters in these positions.
    """

    adapters: tuple[str | None, str | None]
    rule: str
    propensity: float

    @property
    def same(self) -> bool:
        """Whether one adapter gives both answers."""
        return self.adapters[0] == self.adapters[1]


def outcomes(
    config: ContendersConfig,
    office: str | None,
    candidates: tuple[str, ...],
    predecessors: tuple[str | None, ...] = (),
) -> list[Matchup]:
    """Every matchup that may be drawn now; their propensities add up to 1.

    Args:
        predecessors: whom an office-holder that is still watched has to meet (None: the base).
    """
    candidate_share = config.candidate_share if candidates else 0.0
    anchor_share = min(config.anchor_share, 1.0 - candidate_share) if office is not None else 0.0
    watch_share = min(config.watch_share, 1.0 - candidate_share - anchor_share) if predecessors else 0.0
    drawn: list[Matchup] = []
    for candidate in candidates:
        drawn += _both_ways(candidate, office, CANDIDATE, candidate_share / len(candidates))
    drawn += _both_ways(None, office, ANCHOR, anchor_share)
    for predecessor in predecessors:
        drawn += _both_ways(predecessor, office, WATCH, watch_share / len(predecessors))
    rest = 1.0 - candidate_share - anchor_share - watch_share
    drawn.append(Matchup((office, office), SELF_PLAY, rest))
    return [matchup for matchup in drawn if matchup.propensity > 0]


def choose(
    rng: random.Random,
    config: ContendersConfig,
    office: str | None,
    candidates: tuple[str, ...] = (),
    predecessors: tuple[str | None, ...] = (),
) -> Matchup:
    """Draw a matchup."""
    possible = outcomes(config, office, candidates, predecessors)
    return rng.choices(possible, weights=[matchup.propensity for matchup in possible])[0]


def _both_ways(one: str | None, other: str | None, rule: str, share: float) -> list[Matchup]:
    return [Matchup((one, other), rule, share / 2), Matchup((other, one), rule, share / 2)]
