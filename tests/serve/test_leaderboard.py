from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from feedback.contracts import Choice
from feedback.ledger import Tally
from feedback.voters import Ballot, Ballots
from serve.leaderboard import choices, leaderboard, left_interval, left_share

ONE, TWO = "policy-000001", "policy-000002"
BASE = Ballot(
    vote_id="",
    pair_id="",
    voter="v",
    adapter_a=ONE,
    adapter_b="base",
    choice=0,
    gold=-1,
    leak=False,
    prompt=0,
    length_a=10,
    length_b=10,
    shown_ms=0,
    cast_ms=0,
)
A, B, TIE, BOTH_BAD = range(4)


def ballots(*rows: tuple[str, str, int, int]) -> Ballots:
    """Left, right, choice, how many; each vote by another voter."""
    made = [
        BASE._replace(adapter_a=a, adapter_b=b, choice=choice) for a, b, choice, times in rows for _ in range(times)
    ]
    return Ballots.of(ballot._replace(voter=f"v{number}") for number, ballot in enumerate(made))


def ones(told: Ballots) -> np.ndarray:  # type: ignore[type-arg]
    return np.ones(len(told))


def test_wins_are_counted_from_both_sides_and_ties_count_half() -> None:
    told = ballots((ONE, "base", A, 3), ("base", ONE, B, 2), (ONE, "base", B, 1), ("base", ONE, TIE, 2))
    told = Ballots.of([*rows(told), *rows(ballots(("base", ONE, BOTH_BAD, 2)))])
    best, base = leaderboard(told, ones(told), draws=50).contenders
    assert (best.contender, best.wins, best.losses, best.ties, best.both_bad) == (ONE, 5, 1, 2, 2)
    assert (base.contender, base.wins, base.losses) == ("base", 1, 5)
    assert best.win_rate == pytest.approx((5 + 2) / 10)
    assert base.win_rate == pytest.approx((1 + 2) / 10)
    assert best.votes == base.votes == 10
    assert best.strength == pytest.approx(-base.strength, abs=1e-3)


def test_a_vote_that_weighs_nothing_moves_nothing_but_is_counted() -> None:
    told = ballots((ONE, "base", A, 6), ("base", ONE, A, 4), (ONE, "base", A, 50))
    weights = ones(told)
    weights[10:] = 0
    best = leaderboard(told, weights, draws=50).contenders[0]
    assert (best.wins, best.win_rate) == (56, 0.6)


def test_an_adapter_against_itself_a_planted_pair_and_a_leak_say_nothing() -> None:
    told = ballots((ONE, ONE, A, 9), (ONE, "base", A, 4))
    told = replace(told, gold=np.array([0] * 2 + [-1] * 11), leak=np.array([False] * 10 + [True] * 3))
    board = leaderboard(told, ones(told), draws=20)
    assert (board.votes, board.planted, board.leaking) == (1, 2, 3)
    nothing = ballots((ONE, ONE, A, 9))
    assert leaderboard(nothing, ones(nothing)).contenders == ()
    json.dumps(asdict(board))


def test_ranks_follow_the_intervals() -> None:
    clear = ballots(
        (ONE, "base", A, 60), ("base", ONE, B, 60), (ONE, TWO, A, 3), (ONE, TWO, B, 3), (TWO, "base", A, 40)
    )
    found = {row.contender: row for row in leaderboard(clear, ones(clear)).contenders}
    assert (found[ONE].rank, found["base"].rank) == (1, 3)
    close = ballots((ONE, "base", A, 4), ("base", ONE, B, 4), (ONE, "base", B, 3), ("base", ONE, A, 3))
    assert [row.rank for row in leaderboard(close, ones(close)).contenders] == [1, 1]


def test_length_is_taken_out_of_the_controlled_strength() -> None:
    # Whoever is the longer wins three times in four, and ONE is it in 32 of 44: at equal length they are even.
    at_left = (ONE, "base", A, 24), (ONE, "base", B, 8), (ONE, "base", A, 3), (ONE, "base", B, 9)
    at_right = (("base", ONE, 1 - choice, times) for _, _, choice, times in at_left)
    told = ballots(*at_left, *at_right)
    ones_is_longer = np.arange(88) % 44 < 32
    left_is_longer = ones_is_longer == (np.arange(88) < 44)
    told = replace(told, length_a=np.where(left_is_longer, 300, 100), length_b=np.where(left_is_longer, 100, 300))
    board = leaderboard(told, ones(told), draws=50)
    best = next(row for row in board.contenders if row.contender == ONE)
    assert best.strength > 0.15
    assert best.controlled == pytest.approx(0, abs=0.05)
    assert board.length_effect is not None
    assert board.length_effect > 1


def test_position_bias_is_the_share_of_the_left() -> None:
    tallies = [Tally(None, None, "a", 3), Tally(ONE, None, "b", 1), Tally(None, None, "tie", 9)]
    assert left_share(tallies) == 0.75
    assert left_share([Tally(None, None, "tie", 1)]) is None
    assert left_interval([Tally(None, None, "tie", 1)]) is None
    assert choices(tallies) == {"a": 3, "b": 1, "tie": 9, "both_bad": 0, "ranking": 0}


@pytest.mark.parametrize(
    ("left", "right", "low", "high"),
    [(10, 0, 0.7225, 1.0), (5, 5, 0.2366, 0.7634), (81, 19, 0.7222, 0.8749)],  # Wilson's score interval, by hand
)
def test_the_lefts_interval_is_wilsons(left: int, right: int, low: float, high: float) -> None:
    chosen: tuple[tuple[Choice, int], ...] = (("a", left), ("b", right))
    found = left_interval([Tally(None, None, choice, votes) for choice, votes in chosen])
    assert found == pytest.approx((low, high), abs=1e-4)


def rows(told: Ballots) -> list[Ballot]:
    return [
        BASE._replace(
            voter=f"{told.voters[told.voter[i]]}-{len(told)}",
            adapter_a=told.adapters[told.left[i]],
            adapter_b=told.adapters[told.right[i]],
            choice=int(told.choice[i]),
        )
        for i in range(len(told))
    ]
