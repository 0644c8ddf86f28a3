"""When a cycle is due, and when the trainer reads ahead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from train.config import TrainConfig
from train.cycle_state import CycleState
from train.watch import Ahead, counts, is_due

ENDED = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def due_after(last: dict[str, Any] | None, decisive: int, hours: float = 0.0, **schedule: Any) -> bool:
    """Whether a cycle is due at so many new votes, so long after the last one's end."""
    config = TrainConfig.model_validate(
        {"schedule": {"new_comparisons": 64, **schedule}, "reward": {"min_decisive": 32}}
    )
    state = None if last is None else CycleState(number=1, config={}, finished_at=ENDED.isoformat(), **last)
    new: Any = SimpleNamespace(decisive=decisive, ties=0)
    return is_due(new, config, state, ENDED + timedelta(hours=hours)).now


@pytest.mark.parametrize(
    ("last", "schedule", "needed"),
    [
        (None, {}, 64),
        (None, {"new_comparisons": 8}, 32),  # fewer than a reward model takes
        ({"outcome": "published"}, {}, 64),
        ({"outcome": "refused", "reason": "PPO found no policy"}, {}, 64),  # minutes of computation, not seconds
        ({"outcome": "failed", "reason": "odd"}, {}, 64),
        ({"outcome": "refused", "refused_by": "coin"}, {}, 16),
        ({"outcome": "refused", "refused_by": "predecessor"}, {"retry_comparisons": 5}, 5),
        ({"outcome": "refused", "refused_by": "coin"}, {"new_comparisons": 10}, 10),
    ],
)
def test_a_cycle_is_due_at_so_many_new_votes(
    last: dict[str, Any] | None, schedule: dict[str, Any], needed: int
) -> None:
    assert not due_after(last, needed - 1, **schedule)
    assert due_after(last, needed, **schedule)


def test_a_cycle_is_due_after_a_day_with_any_vote() -> None:
    ended = {"outcome": "published"}
    assert due_after(ended, 1, hours=24)
    assert not due_after(ended, 1, hours=23.9)
    assert not due_after(ended, 0, hours=48)


def test_the_answers_so_far_are_read_twice_in_the_wait_for_a_cycle() -> None:
    ahead = Ahead()
    # 60% of 64 is 38.4, 85% is 54.4
    assert [votes for votes in range(64) if ahead.due(votes, 64)] == [39, 55]
    # the cycle has taken them; the next wait begins at none
    assert [votes for votes in range(64) if ahead.due(votes, 64)] == [39, 55]


def test_a_restart_late_in_the_wait_reads_once() -> None:
    ahead = Ahead()
    assert [ahead.due(votes, 64) for votes in (60, 61, 63)] == [True, False, False]


def test_between_cycles_the_dataset_counts_what_was_learnt_and_what_is_new() -> None:
    manifests: Any = [SimpleNamespace(id="first", decisive=70), SimpleNamespace(id="second", decisive=151)]
    dataset: Any = SimpleNamespace(snapshots=lambda: manifests)
    new: Any = SimpleNamespace(decisive=6, ties=2)
    told = counts(dataset, CycleState(number=2, config={}, snapshot="second"), new, 64)
    assert told == {"snapshot": "second", "decisive": 157, "new": 6, "needed": 64}
    assert counts(dataset, None, new, 64) == {"snapshot": None, "decisive": 6, "new": 6, "needed": 64}
