"""What the benchmark of the votes makes of what it measured."""

from __future__ import annotations

from benchmarks.votes.__main__ import _round, _spread


def test_a_round_is_held_against_the_lower_of_the_rivals_on_either_side_of_it() -> None:
    before, after = {"producer": 5_000.0, "commits": 90_000.0}, {"producer": 6_000.0, "commits": 4_000.0}
    runs = [{"connections": 1, "votes_per_s": 900}, {"connections": 128, "votes_per_s": 3_300}]
    found = _round(before, after, runs, 0.04)
    assert found["of_lower"] == 0.6  # 3,300 of 5,500; the commits' mean is 47,000
    assert found["rivals_per_s"] == {"producer": [5_000, 6_000], "commits": [90_000, 4_000]}


def test_what_counts_is_the_median_of_the_rounds() -> None:
    assert _spread([0.6, 0.4, 0.9]) == {"median": 0.6, "lowest": 0.4, "highest": 0.9}
