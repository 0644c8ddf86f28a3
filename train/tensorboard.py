"""The iterations' figures as TensorBoard event files, for who asks for them (`train.tensorboard = true`).

TensorBoard is no dependency of ours; look at what is written with `tensorboard --logdir DIR/train/tensorboard`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.errors import TensorBoardMissing

INSTALL = "pip install 'hustings[tensorboard]'"


def require() -> None:
    """Say at the start, not after an hour, that the package is missing.

    Raises:
        TensorBoardMissing: it can't be imported.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise TensorBoardMissing(
            f"train.tensorboard is true, and the package tensorboard isn't installed: {INSTALL}, or set it to false"
        )


class TensorBoard:
    """Writes scalars of one cycle into a folder of its own."""

    def __init__(self, folder: Path, cycle: int) -> None:
        require()
        self._folder = folder / f"cycle-{cycle:06d}"

    def write(self, iteration: int, figures: Mapping[str, Any]) -> None:
        """Add an iteration's numbers, as `train/<name>`; what isn't a finite number is left out.

        An iteration that is done again (a resumed cycle) replaces itself and what came after it.
        """
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self._folder), purge_step=iteration) as writer:
            for name, value in _flat(figures).items():
                writer.add_scalar(f"train/{name}", value, iteration)


def _flat(figures: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{inner}": one for inner, one in _flat(value).items()}
        elif isinstance(value, (int, float)) and math.isfinite(value):
            numbers[name] = float(value)
    return numbers
