"""When a cycle is due, and when the trainer reads ahead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from train.config import TrainConfig
from train.cycle_state import CycleState
from train.watch import Ahead, counts


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
    config = TrainConfig.model_validate({"schedule": {"new_comparisons": 64}})
    told = counts(dataset, CycleState(number=2, config={}, snapshot="second"), new, config)
    assert told == {"snapshot": "second", "decisive": 157, "new": 6, "needed": 64}
    assert counts(dataset, None, new, config) == {"snapshot": None, "decisive": 6, "new": 6, "needed": 64}
