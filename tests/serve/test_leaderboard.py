from __future__ import annotations

import math

import pytest

from feedback.contracts import Choice
from feedback.ledger import Tally
from serve.leaderboard import bradley_terry, choices, left_share, standings

ONE = "policy-000001"


def tally(a: str | None, b: str | None, choice: Choice, votes: int) -> Tally:
    return Tally(a, b, choice, votes)


def test_wins_are_counted_from_both_sides_and_ties_count_half() -> None:
    found = standings(
        [
            tally(ONE, None, "a", 3),
            tally(None, ONE, "b", 2),
            tally(ONE, None, "b", 1),
            tally(None, ONE, "tie", 2),
            tally(None, ONE, "both_bad", 2),
        ]
    )
    best, base = found
    assert (best.contender, best.wins, best.losses, best.ties, best.both_bad) == (ONE, 5, 1, 2, 2)
    assert (base.contender, base.wins, base.losses) == ("base", 1, 5)
    assert best.win_rate == pytest.approx((5 + 2) / 10)
    assert base.win_rate == pytest.approx((1 + 2) / 10)


def test_an_adapter_against_itself_says_nothing() -> None:
    assert standings([tally(ONE, ONE, "a", 9)]) == []


def test_two_contenders_strengths_have_a_closed_form() -> None:
    # By symmetry the strengths are g and 1/g; the winner's equation
    # w + 1/2 = (w + l) g / (g + 1/g) + g / (g + 1) has the root that bisection finds.
    wins, losses = 30.0, 10.0
    low, high = 1e-3, 1e3
    for _ in range(200):
        g = math.sqrt(low * high)
        took = (wins + losses) * g / (g + 1 / g) + g / (g + 1)
        low, high = (g, high) if took < wins + 0.5 else (low, g)
    found = bradley_terry({("x", "y"): wins, ("y", "x"): losses})
    assert found["x"] == pytest.approx(math.log(g), abs=1e-6)
    assert found["x"] == pytest.approx(-found["y"], abs=1e-9)


def test_equal_contenders_have_strength_zero_and_the_unbeaten_stay_finite() -> None:
    assert bradley_terry({("x", "y"): 5.0, ("y", "x"): 5.0}) == pytest.approx({"x": 0.0, "y": 0.0})
    assert bradley_terry({("x", "y"): 5.0})["x"] < 5
    assert bradley_terry({}) == {}


def test_position_bias_is_the_share_of_the_left() -> None:
    tallies = [tally(None, None, "a", 3), tally(ONE, None, "b", 1), tally(None, None, "tie", 9)]
    assert left_share(tallies) == 0.75
    assert left_share([tally(None, None, "tie", 1)]) is None
    assert choices(tallies) == {"a": 3, "b": 1, "tie": 9, "both_bad": 0}
