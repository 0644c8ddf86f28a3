"""Families of features: views of the pooled blocks, each with a prior of its own in the fit.

A family is a linear view of one block's columns, so whatever is fitted in it folds back into one weight a column:

- `state:l`          the block, each column over its standard deviation;
- `state:l.white`    of the lowest layer: every direction in which tokens differ weighs the same. What sets rare words
                     apart is not drowned by the few directions that common words span;
- `state:l.content`  of the deepest layer: without the directions in which tokens differ most (outlier columns, place
                     in the sentence), which leaves what is spoken of;
- `surface`, `opening`, `meet`, and the shape blocks again in small parts (`surface.words`, ...).

Statistics come from the voted answers and their tokens, never from who won. That they come from tokens matters: the
covariance of a few hundred pooled answers does no good here (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.errors import TrainingDiverged
from train.reward import tokens
from train.reward.probe import Array, Rows

WHITE_RIDGE = 1e-3
"""Share of the mean variance that is added before whitening."""
CONTENT_DROPPED = 8
"""Leading directions that `content` leaves out."""
WIDEST = 2048
"""Hidden sizes above this go without the turned views: their eigenvectors would take minutes."""
SHAPE_FAMILIES = {
    "words": ("starts_word", "characters", "rank"),
    "sentences": ("sentence_end", "newline", "first_sentence", "sentences_so_far"),
    "marks": ("question", "exclamation", "digit", "punctuation", "capital"),
    "length": ("end_of_turn", "length"),
    "repetition": ("repeated",),
    "valence": ("pleasant", "unpleasant"),
}
LATE = ("end_of_turn", "length")
"""Shape columns that the opening leaves out. How an answer begins doesn't say how long it gets; and weighed as openings
are, a turn's end has stood near 0 in all voted answers: any weight there pays an answer of ten words beyond measure."""
SPEAKS_ALONE = "surface.valence"
"""The one shape family that is a structure by itself: two columns tell a taste for kind words from tens of votes."""


@dataclass(frozen=True, slots=True)
class View:
    """A linear view of a block.

    Attributes:
        block: whose columns.
        columns: which of them.
        unit: factor of each column, (k,), or a matrix (k, k) applied from the right.
    """

    block: str
    columns: list[int] | slice
    unit: Array

    def of(self, values: Array) -> Array:
        """The view of answers (or of differences of answers), (n, k)."""
        chosen = values[:, self.columns]
        return np.asarray(chosen @ self.unit if self.unit.ndim == 2 else chosen * self.unit)

    def back(self, weight: Array) -> Array:
        """Weights of the block's columns for weights of the view's, (k,)."""
        return np.asarray(self.unit @ weight if self.unit.ndim == 2 else self.unit * weight)


def views(pooled: Mapping[str, Array], answers: Rows, spread: Mapping[str, Array]) -> dict[str, View]:
    """Every family's view, by name.

    Args:
        pooled: features of all answers by block, (answers, k).
        answers: rows that the statistics are of.
        spread: covariance of answer tokens' hidden states by block, (k, k); blocks without go without turned views.

    Raises:
        TrainingDiverged: a feature is not finite.
    """
    found = {block: _scaled(block, slice(None), values, answers) for block, values in pooled.items()}
    states = sorted((name for name in pooled if name.startswith("state:")), key=lambda name: int(name.split(":")[1]))
    turned = [block for block in states if block in spread and len(spread[block]) <= WIDEST]
    if turned:
        found[f"{turned[0]}.white"] = _turned(turned[0], spread[turned[0]], _whitening)
        found[f"{turned[-1]}.content"] = _turned(turned[-1], spread[turned[-1]], _without_leading)
    names = (*tokens.COLUMNS, "first_sentence", "sentences_so_far", "repeated", "length")
    for block in sorted({"surface", "opening"} & pooled.keys()):
        left_out = LATE if block == "opening" else ()
        found[block] = _scaled(block, _places(names, set(names) - set(left_out)), pooled[block], answers)
        for family, members in SHAPE_FAMILIES.items():
            if columns := _places(names, set(members) - set(left_out)):
                found[f"{block}.{family}"] = _scaled(block, columns, pooled[block], answers)
    return found


def structures(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Which families may speak together: everything, the states, each state, its views and valence alone."""
    plain = tuple(name for name in names if not name.startswith("state:") or "." not in name)
    states = tuple(name for name in plain if name.startswith("state:"))
    turned = tuple((name,) for name in names if name not in plain)
    several = (states,) if len(states) > 1 else ()
    alone = tuple((name,) for name in states)
    sound = ((SPEAKS_ALONE,),) if SPEAKS_ALONE in names else ()
    return tuple(dict.fromkeys((plain, *several, *alone, *turned, *sound)))


def _places(names: Sequence[str], chosen: Container[str]) -> list[int]:
    return [at for at, name in enumerate(names) if name in chosen]


def _scaled(block: str, columns: list[int] | slice, values: Array, answers: Rows) -> View:
    used = values[answers][:, columns]
    if not np.isfinite(used).all():
        raise TrainingDiverged(f"features of block {block} are not finite: the base model's weights are damaged")
    spread = used.std(axis=0)
    unit = np.where(spread > 1e-6 * max(float(spread.max()), 1e-9), 1 / np.maximum(spread, 1e-12), 0.0)
    return View(block, columns, unit)


def _turned(block: str, covariance: Array, factors: Callable[[Array], Array]) -> View:
    """The principal directions of a block's tokens, weighed by `factors(variances)`, variances rising."""
    variance, directions = np.linalg.eigh(covariance)
    return View(block, slice(None), directions * factors(np.maximum(variance, 0.0)))


def _whitening(variance: Array) -> Array:
    return np.asarray(1 / np.sqrt(variance + WHITE_RIDGE * variance.mean() + 1e-12))


def _without_leading(variance: Array) -> Array:
    kept = len(variance) - min(CONTENT_DROPPED, len(variance) // 4)
    return np.where(np.arange(len(variance)) < kept, 1.0, 0.0)
