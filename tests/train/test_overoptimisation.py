"""What the bench of over-optimisation reads off a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.overoptimisation import Seen, _only_voted, picture, stopped


def policies(*gold: float | None) -> list[Seen]:
    """Policies at 0, 1, 4, 9 and so on nats."""
    return [
        Seen(kl=float(at * at), proxy=float(at), true=0.0, true_error=0.1, gold=value, gold_error=0.01)
        for at, value in enumerate(gold)
    ]


def test_a_run_is_stopped_where_kept_votes_have_fallen_past_their_peak_and_the_best_before_is_published() -> None:
    # d (2 - log d), highest at d = e (7.4 nats): 0, 2, 2.61, 2.70, 2.45, 1.95
    assert stopped(policies(0.0, 2.0, 2.61, 2.70, 2.45, 1.95)) == (4, 3)


def test_kept_votes_that_rise_for_ever_stop_nothing_and_none_say_nothing() -> None:
    assert stopped(policies(0.0, 1.0, 2.0, 3.0, 4.0)) is None
    assert stopped(policies(None, None, None, None, None)) is None


def test_the_picture_has_a_panel_for_each_number_of_votes_and_hollow_dots_beyond_a_bound() -> None:
    free = [
        {"kl": 0.0, "proxy": 0.0, "true": 0.0, "true_error": 0.1},
        {"kl": 16.0, "proxy": 4.0, "true": 1.0, "true_error": 0.1},
    ]
    governed = [free[0], {"kl": 10.0, "proxy": 1.0, "true": 1.0, "true_error": 0.1, "breaches": ["KL"]}]
    drawn = picture(
        [
            {"utility": "mix", "decisive": votes, "kind": kind, "policies": seen}
            for votes in (64, 640)
            for kind, seen in (("free", free), ("governed", governed))
        ]
    )
    assert drawn.count("mix, 64 votes") == drawn.count("mix, 640 votes") == 1
    assert drawn.count("<circle") == 4
    assert drawn.count('fill="none" stroke="#2f8f5b"/>') == 2  # the circles of 10 nats


@dataclass(frozen=True)
class Cast:
    """Of votes, what says who met whom."""

    answers: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def test_answers_without_a_vote_are_left_out_and_the_votes_keep_theirs() -> None:
    votes = Cast(("a", "b", "c", "d", "e"), np.array([4, 1]), np.array([1, 2]))
    left = _only_voted(votes)
    assert left.answers == ("b", "c", "e")
    assert [(left.answers[a], left.answers[b]) for a, b in zip(left.first, left.second, strict=True)] == [
        ("e", "b"),
        ("b", "c"),
    ]
