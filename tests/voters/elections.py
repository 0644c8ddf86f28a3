"""Made-up elections between X and the base, with voters of known kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feedback.voters.ballots import NO_GOLD, Ballot, Ballots

X, BASE = "policy-000001", "base"


@dataclass(frozen=True)
class Shown:
    """What a voter sees; `x` is the position of X (None: it meets itself), `gold` of the better answer."""

    x: int | None
    gold: int


Voter = Callable[[Shown, np.random.Generator], int]


def honest(rate: float) -> Voter:
    """Prefers X at this rate and judges planted pairs right in 19 of 20."""

    def vote(shown: Shown, rng: np.random.Generator) -> int:
        if shown.gold != NO_GOLD:
            return shown.gold if rng.random() < 0.95 else 1 - shown.gold
        if shown.x is None:
            return int(rng.random() < 0.5)
        return shown.x if rng.random() < rate else 1 - shown.x

    return vote


def promoter(shown: Shown, rng: np.random.Generator) -> int:
    """Careful everywhere, but always for X."""
    return honest(1.0)(shown, rng)


def coin(_: Shown, rng: np.random.Generator) -> int:
    return int(rng.random() < 0.5)


def always_left(_: Shown, __: np.random.Generator) -> int:
    return 0


def election(
    voters: dict[str, Voter], votes: int, *, gold: float = 0.1, seed: int = 0, after_ms: int = 20_000
) -> Ballots:
    """Each voter casts so many votes: planted at the rate `gold`, half of the others X against the base."""
    rng = np.random.default_rng(seed)
    return Ballots.of(
        _ballot(name, f"{name}-{number}", number, vote, rng, gold, after_ms)
        for name, vote in voters.items()
        for number in range(votes)
    )


def _ballot(
    name: str, key: str, number: int, vote: Voter, rng: np.random.Generator, gold: float, after_ms: int
) -> Ballot:
    planted, contest, left = rng.random() < gold, rng.random() < 0.5, int(rng.random() < 0.5)
    shown = Shown(x=left if contest and not planted else None, gold=left if planted else NO_GOLD)
    spoke = [BASE, BASE] if planted else [X, X]
    if shown.x is not None:
        spoke = [X, BASE] if shown.x == 0 else [BASE, X]
    at = 100_000 * number
    return Ballot(
        vote_id=key,
        pair_id=f"pair-{key}",
        voter=name,
        adapter_a=spoke[0],
        adapter_b=spoke[1],
        choice=vote(shown, rng),
        gold=shown.gold,
        leak=False,
        prompt=number,
        length_a=100,
        length_b=100,
        shown_ms=at,
        cast_ms=at + after_ms,
    )
