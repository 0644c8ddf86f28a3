"""When the next cycle starts: enough new comparisons, or enough time and at least one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from train.config import TrainConfig
from train.cycle_state import CycleState

if TYPE_CHECKING:
    from feedback.dataset import SnapshotManifest

SHARES = (0.6, 0.85)
"""Shares of the awaited votes at which the answers so far are read. Below half, the tables of prompts might still be
made anew (see `reward.extract.vocabulary_for`), and with them every feature."""


class NewVotes(Protocol):
    """Counts of what came since a snapshot."""

    @property
    def decisive(self) -> int:
        """Votes that preferred one answer, planted pairs aside."""

    @property
    def ties(self) -> int:
        """All other votes."""


class Snapshots(Protocol):
    """What a dataset tells of its snapshots."""

    def snapshots(self) -> Sequence[SnapshotManifest]:
        """Manifests of all."""


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a cycle is due, why (or what is missing), and how many new comparisons make it so."""

    now: bool
    reason: str
    needed: int


def is_due(new: NewVotes, config: TrainConfig, last: CycleState | None, now: datetime | None = None) -> Due:
    """Decide.

    Args:
        new: votes since the last cycle's snapshot.
        config: the trainer's.
        last: the last cycle that ended, if any.
        now: the time; for tests.
    """
    schedule = config.schedule
    needed = schedule.new_comparisons if last is not None else max(schedule.new_comparisons, config.reward.min_decisive)
    if last is not None and last.refused_by is not None:
        needed = min(needed, schedule.retry_comparisons)
    if new.decisive >= needed:
        return Due(True, f"{new.decisive} new comparisons", needed)
    if last is not None and last.finished_at is not None and new.decisive + new.ties > 0:
        waited = (now or datetime.now(UTC)) - datetime.fromisoformat(last.finished_at)
        if waited >= timedelta(hours=schedule.max_hours):
            return Due(True, f"{schedule.max_hours:g} hours since the last cycle", needed)
    return Due(False, f"waiting for votes: {new.decisive} of {needed} new comparisons", needed)


def counts(dataset: Snapshots, last: CycleState | None, new: NewVotes, needed: int) -> dict[str, Any]:
    """What the Loop page tells of the dataset between two cycles: all votes that name a winner, the new ones, and how
    many of these are needed."""
    learnt = last.snapshot if last is not None else None
    known = sum(manifest.decisive for manifest in dataset.snapshots() if manifest.id == learnt)
    return {
        "snapshot": learnt,
        "decisive": known + new.decisive,
        "new": new.decisive,
        "needed": needed,
    }


class Ahead:
    """Tells when to read ahead, so that a cycle that becomes due finds little left to read."""

    def __init__(self) -> None:
        self._passed = 0

    def due(self, decisive: int, needed: int) -> bool:
        """Whether the votes so far have reached the next share; each counts once in the wait for a cycle.

        Args:
            decisive: votes since the last cycle's snapshot.
            needed: how many start the next.
        """
        reached = sum(decisive >= share * needed for share in SHARES)
        found = reached > self._passed
        self._passed = reached  # a new cycle begins at no votes, and with that anew
        return found
