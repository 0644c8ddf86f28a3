"""When a cycle is due, and when the trainer reads ahead."""

from __future__ import annotations

from train.watch import Ahead


def test_the_answers_so_far_are_read_twice_in_the_wait_for_a_cycle() -> None:
    ahead = Ahead()
    # 60% of 64 is 38.4, 85% is 54.4
    assert [votes for votes in range(64) if ahead.due(votes, 64)] == [39, 55]
    # the cycle has taken them; the next wait begins at none
    assert [votes for votes in range(64) if ahead.due(votes, 64)] == [39, 55]


def test_a_restart_late_in_the_wait_reads_once() -> None:
    ahead = Ahead()
    assert [ahead.due(votes, 64) for votes in (60, 61, 63)] == [True, False, False]
