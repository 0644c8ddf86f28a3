"""Who meets whom: a rule is drawn by its share, then who speaks where, and the probability of just that is kept.

Two adapters meet (or one meets itself), however many answers there are: every arrangement in which both speak is as
likely as any other. So with no true difference each has the same chance in every place, and nothing more than those two
has to be loaded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

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

    adapters: tuple[str | None, ...]
    rule: str
    propensity: float

    @property
    def same(self) -> bool:
        """Whether one adapter gives all answers."""
        return len(set(self.adapters)) == 1


def outcomes(
    config: ContendersConfig,
    office: str | None,
    candidates: tuple[str, ...],
    predecessors: tuple[str | None, ...] = (),
    answers: int = 2,
) -> list[Matchup]:
    """Every matchup that may be drawn now; their propensities add up to 1.

    Args:
        answers: how many there are to be, 2 to 4.
        predecessors: whom an office-holder that is still watched has to meet (None: the base).
    """
    candidate_share = config.candidate_share if candidates else 0.0
    anchor_share = min(config.anchor_share, 1.0 - candidate_share) if office is not None else 0.0
    watch_share = min(config.watch_share, 1.0 - candidate_share - anchor_share) if predecessors else 0.0
    drawn: list[Matchup] = []
    for candidate in candidates:
        drawn += _arranged(candidate, office, answers, CANDIDATE, candidate_share / len(candidates))
    drawn += _arranged(None, office, answers, ANCHOR, anchor_share)
    for predecessor in predecessors:
        drawn += _arranged(predecessor, office, answers, WATCH, watch_share / len(predecessors))
    rest = 1.0 - candidate_share - anchor_share - watch_share
    drawn.append(Matchup((office,) * answers, SELF_PLAY, rest))
    return [matchup for matchup in drawn if matchup.propensity > 0]


def choose(  # noqa: PLR0917  everything that the draw depends on
    rng: random.Random,
    config: ContendersConfig,
    office: str | None,
    candidates: tuple[str, ...] = (),
    predecessors: tuple[str | None, ...] = (),
    answers: int = 2,
) -> Matchup:
    """Draw a matchup."""
    possible = outcomes(config, office, candidates, predecessors, answers)
    return rng.choices(possible, weights=[matchup.propensity for matchup in possible])[0]


def _arranged(one: str | None, other: str | None, answers: int, rule: str, share: float) -> list[Matchup]:
    both = [speakers for speakers in product((one, other), repeat=answers) if len(set(speakers)) == 2]
    return [Matchup(speakers, rule, share / len(both)) for speakers in both]
