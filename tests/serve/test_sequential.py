"""The anytime-valid test, ballots, and both together by simulation."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import releases as bench
from feedback.ledger import Duel
from feedback.ledger.duels import SCORES
from serve.config import CanaryConfig
from serve.releases.ballots import count
from serve.releases.sequential import BETS, Evidence, interval, log_capital

WHEN = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
IDLE = timedelta(minutes=30)
SCORE = st.sampled_from([0.0, 0.1, 0.25, 0.5, 2 / 3, 0.9, 1.0])


def vote(voter: str, outcome: str, minute: float, *, left: bool = False) -> Duel:
    named = left if outcome in {"win", "loss"} else None
    return Duel(voter, outcome, named, WHEN + timedelta(minutes=minute))  # type: ignore[arg-type]


def test_bets_are_fair_whatever_the_null() -> None:
    for null in (0.05, 0.5, 0.8):
        for bet in BETS:
            won, lost = 1 - bet + bet / null, 1 - bet
            assert null * won + (1 - null) * lost == pytest.approx(1.0)
            assert lost > 0


def test_the_capital_after_two_wins_and_a_tie_is_the_mean_over_the_bets() -> None:
    # Against a coin a win pays 1 + c, a loss 1 - c, a tie nothing.
    by_hand = sum((1 + bet) ** 2 for bet in BETS) / 8
    assert math.exp(log_capital({1.0: 2, 0.5: 1}, 0.5)) == pytest.approx(by_hand)
    assert log_capital({}, 0.5) == pytest.approx(0.0)


def test_eight_strangers_who_all_prefer_the_candidate_refute_a_coin_and_seven_do_not() -> None:
    # The sums of (1 + c)**7 and (1 + c)**8 over the bets are 139 and 242: capitals of 17 and 30, and 20 is needed.
    assert [math.exp(log_capital({1.0: n}, 0.5)) for n in (7, 8)] == pytest.approx([17.4, 30.2], abs=0.1)


@settings(deadline=None, max_examples=30)
@given(st.lists(SCORE, max_size=40), st.sampled_from([0.2, 0.5, 0.7]))
def test_the_order_of_the_observations_does_not_matter(scores: list[float], null: float) -> None:
    one_by_one, counts = Evidence(null), Counter(scores)
    for score in scores:
        one_by_one.add(score)
    assert one_by_one.log_capital == pytest.approx(log_capital(counts, null), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(SCORE, min_size=1, max_size=60))
def test_the_interval_holds_the_mean_and_mirrors_with_the_scores(scores: list[float]) -> None:
    counts = Counter(scores)
    found = interval(counts, 0.05)
    assert found.mean == pytest.approx(sum(scores) / len(scores))
    assert 0.0 <= found.lower <= found.mean + 1e-9 <= found.upper + 2e-9 <= 1.0 + 3e-9
    mirrored = interval(Counter(1 - score for score in scores), 0.05)
    assert mirrored.lower == pytest.approx(1 - found.upper, abs=1e-6)


def test_a_mean_at_the_bound_is_just_refuted() -> None:
    counts = {1.0: 80, 0.0: 40, 0.5: 10}
    lower = interval(counts, 0.05).lower
    assert log_capital(counts, lower - 1e-6) > math.log(20) > log_capital(counts, lower + 1e-6)
    assert 0.5 < lower < 0.65


def test_without_observations_nothing_is_known() -> None:
    assert (interval({}, 0.05).mean, interval({}, 0.05).lower, interval({}, 0.05).upper) == (None, 0.0, 1.0)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_only_observations_between_0_and_1_are_taken(wrong: float) -> None:
    with pytest.raises(ValueError, match="observation"):
        Evidence(0.5).add(wrong)
    with pytest.raises(ValueError, match="null"):
        Evidence(wrong)


def test_a_ballot_is_the_mean_of_a_voters_first_votes_and_counts_once() -> None:
    busy = [vote("v_ann", "win" if n < 4 else "loss", n) for n in range(50)]
    counted = count(busy, now=WHEN, size=5, idle=IDLE)
    assert counted.ballots == {0.8: 1}
    assert (counted.votes, counted.voters) == (50, 1)


def test_a_ballot_that_is_not_full_counts_once_its_voter_has_been_away_and_takes_no_more() -> None:
    early = [vote("v_ann", "win", 0), vote("v_ann", "both_bad", 5)]
    assert count(early, now=WHEN + timedelta(minutes=34), size=5, idle=IDLE).ballots == {}
    assert count(early, now=WHEN + timedelta(minutes=35), size=5, idle=IDLE).ballots == {0.75: 1}
    late = [*early, vote("v_ann", "loss", 36), vote("v_ben", "tie", 37)]
    counted = count(late, now=WHEN + timedelta(minutes=70), size=5, idle=IDLE)
    assert counted.ballots == {0.75: 1, 0.5: 1}
    assert counted.outcomes == {"win": 1, "both_bad": 1, "loss": 1, "tie": 1}


def test_votes_may_count_one_by_one_where_an_operator_wants_it_so() -> None:
    votes = [vote("v_ann", outcome, 0) for outcome in ("win", "win", "loss")]
    counted = count(votes, now=WHEN, size=5, idle=IDLE, by_voter=False)
    assert counted.ballots == {1.0: 2, 0.0: 1}
    assert counted.voters == 1


def test_the_share_of_left_votes_is_told_of_decisive_ones() -> None:
    votes = [vote("a", "win", 0, left=True), vote("b", "loss", 0), vote("c", "loss", 0, left=True), vote("d", "tie", 0)]
    assert count(votes, now=WHEN, size=1, idle=IDLE).left_share == pytest.approx(2 / 3)
    assert count([], now=WHEN, size=1, idle=IDLE).left_share is None


def test_the_benchmarks_ballots_are_servings() -> None:
    rng = np.random.default_rng(3)
    voter, score = bench.votes(bench.People(voters=12, heavy=1.0), 4, 150, rng)
    closes, mean = bench.ballots(voter, score, 3, 300.0)
    names = {score: outcome for outcome, score in SCORES.items() if outcome != "both_bad"}
    for run in range(4):
        duels = [
            vote(f"v_{who}", names[what], at * bench.VOTE_S / 60)
            for at, (who, what) in enumerate(zip(voter[run], score[run], strict=True))
        ]
        end = 149 * bench.VOTE_S
        ours = count(duels, now=WHEN + timedelta(seconds=end), size=3, idle=timedelta(minutes=5))
        theirs = Counter(mean[run][closes[run] <= end].round(9))
        assert theirs == Counter({round(score, 9): times for score, times in ours.ballots.items()})


def test_the_benchmarks_capital_is_servings() -> None:
    rng = random.Random(5)
    scores = [rng.choice([0.0, 0.2, 0.5, 1.0]) for _ in range(30)]
    paths = bench.log_capital(np.array([scores]), 0.4)[0]
    assert paths[-1] == pytest.approx(log_capital(Counter(scores), 0.4))
    assert paths[9] == pytest.approx(log_capital(Counter(scores[:10]), 0.4))


def promoted(people: bench.People, runs: int, config: CanaryConfig | None = None) -> float:
    """Share of the elections that promote, looked at after every vote."""
    config = config or CanaryConfig()
    won, _ = bench.decided(people, config, runs, np.random.default_rng(1), config.max_votes)
    return float((won <= config.max_votes).mean())


WITHOUT_DIFFERENCE = {
    "alike": bench.People(),
    "position bias": bench.People(left=0.3),
    "heavy voters of different taste": bench.People(voters=200, heavy=1.0, spread=0.25),
    "those and position bias": bench.People(voters=200, heavy=1.0, spread=0.25, left=0.3),
    "weighed by trust": bench.People(voters=200, heavy=1.0, spread=0.25, left=0.3, coins=0.33, trusted=True),
}


def test_a_candidate_that_is_no_better_is_seldom_promoted() -> None:
    short = CanaryConfig(max_votes=400)
    people = bench.People(voters=60, heavy=1.0, spread=0.25, left=0.2)
    assert promoted(people, 250, short) <= 0.05
    # The same votes taken for strangers' would have promoted it far more often.
    assert promoted(people, 250, CanaryConfig(max_votes=400, by_voter=False)) > 0.1


def test_a_candidate_that_is_better_is_promoted() -> None:
    assert promoted(bench.People(0.7, voters=200), 250, CanaryConfig(max_votes=600)) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("case", WITHOUT_DIFFERENCE)
def test_of_ten_thousand_elections_without_a_difference_at_most_one_in_twenty_promotes(case: str) -> None:
    assert promoted(WITHOUT_DIFFERENCE[case], 10_000) <= 0.05
