"""What a cycle works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedback.paths import DataPaths
from train.base import Base
from train.data import VotesSource
from train.rollout import Rollouts
from train.status import StatusBoard
from train.team import ALONE, Team
from train.texts import TextReader


@dataclass(frozen=True, slots=True)
class Tools:
    """What a cycle works with; composed in `train.main`.

    Attributes:
        model: path of the base.
        tokenizer: the base's, from transformers.
        texts: reads what has no token ids through it.
        votes: the dataset.
        rollouts: makes the source of answers for a run's name, given what saves the current policy.
        incumbent: folder of the adapter to go on from, or None.
        should_stop: asked often; True interrupts the cycle, which resumes later.
        team: the processes that train together; each has tools of its own.
    """

    paths: DataPaths
    model: Path
    base: Base
    tokenizer: Any
    texts: TextReader
    votes: VotesSource
    status: StatusBoard
    rollouts: Callable[[Base, str], Rollouts] | None
    incumbent: Callable[[], Path | None]
    should_stop: Callable[[], bool] = lambda: False
    team: Team = ALONE
