"""Planted pairs: now and then one answer's words are jumbled, so that everybody who reads knows which is the better.

Only where an adapter would have met itself: nothing that a contest could have told is lost. The planted pair is marked
in its event (`PairShown.gold`), weighs nothing in training and standings, and tells whether its voter reads.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from feedback.contracts import GOLD_RULE, Position
from serve.contenders import Matchup

GOLD = GOLD_RULE
"""The contenders' rule of planted pairs."""
BLOCK = 12
"""Words that are jumbled together; a stream is held back by so many."""
LEAST = 8
"""An answer of fewer words is shown as it is: jumbled, it might still be read."""
_WORD = re.compile(r"\s*\S+(?=\s)")


def plant(rng: random.Random, share: float, matchup: Matchup) -> tuple[Matchup, Position | None]:
    """Draw whether this matchup becomes a planted pair, and in which position the intact answer then is.

    Args:
        share: of the matchups of one adapter with itself.
    """
    if not share or not matchup.same or len(matchup.adapters) > 2:
        return matchup, None
    if rng.random() >= share:
        return replace(matchup, propensity=matchup.propensity * (1 - share)), None
    better: Position = "a" if rng.random() < 0.5 else "b"
    return Matchup(matchup.adapters, GOLD, matchup.propensity * share / 2), better


class Jumbler:
    """Jumbles the words of a streamed answer, a block at a time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pending = ""
        self._words: list[str] = []
        self._begun = False
        self.moved = 0
        """Places in which another word is shown than was sampled."""

    @property
    def jumbled(self) -> bool:
        """Whether everybody would see it: not in an answer that is too short, or one word over and over."""
        return self.moved >= LEAST

    def add(self, text: str) -> str:
        """Take the next text; returns what can be shown now."""
        self._pending += text
        shown = []
        while (word := _WORD.match(self._pending)) is not None:
            self._words.append(word.group())
            self._pending = self._pending[word.end() :]
            if len(self._words) == BLOCK:
                shown.append(self._release())
        return "".join(shown)

    def end(self) -> str:
        """What is left when the answer has ended."""
        if self._pending.strip():
            self._words.append(self._pending)
            self._pending = ""
        if len(self._words) >= LEAST or (self._begun and len(self._words) > 1):
            return self._release() + self._pending
        left, self._words = "".join(self._words), []
        return left + self._pending

    def _release(self) -> str:
        """The words of the block in another order, the spaces where they were."""
        self._begun = True
        spaces = [word[: len(word) - len(word.lstrip())] for word in self._words]
        bare = [word.lstrip() for word in self._words]
        order = list(range(len(bare)))
        while any(place == index for place, index in enumerate(order)):
            self._rng.shuffle(order)
        self._words = []
        self.moved += sum(bare[index] != bare[place] for place, index in enumerate(order))
        return "".join(space + bare[index] for space, index in zip(spaces, order, strict=True))
