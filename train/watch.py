"""When the next cycle starts: enough new comparisons, or enough time and at least one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from train.config import TrainConfig
from train.cycle_state import CycleState


class NewVotes(Protocol):
    """Counts of what came since a snapshot."""

    @property
    def decisive(self) -> int:
        """Votes that preferred one answer."""

    @property
    def ties(self) -> int:
        """Ties and both-bads."""


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a cycle is due, and why (or what is missing)."""

    now: bool
    reason: str


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
    if new.decisive >= needed:
        return Due(True, f"{new.decisive} new comparisons")
    if last is not None and last.finished_at is not None and new.decisive + new.ties > 0:
        waited = (now or datetime.now(UTC)) - datetime.fromisoformat(last.finished_at)
        if waited >= timedelta(hours=schedule.max_hours):
            return Due(True, f"{schedule.max_hours:g} hours since the last cycle")
    return Due(False, f"waiting for votes: {new.decisive} of {needed} new comparisons")
