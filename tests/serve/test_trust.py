"""Ballots weighed by their voters' trust: fixed beforehand, blind to the contest, and no more than one ballot each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

from benchmarks import weighed_elections
from feedback.config import VotersConfig
from feedback.contracts import Choice
from feedback.ledger import Duel, Ledger
from serve.config import CanaryConfig, ReleasesConfig
from serve.releases.ballots import count
from serve.releases.referee import Contest, Referee
from serve.releases.sequential import BETS, Evidence, interval, log_capital, mirrored, total_weight
from serve.releases.trust import Scales
from serve.vote_book import VoteBook
from tests.ledger.builders import shown, shown_and_voted

NEW, OFFICE, OLD = "policy-000003", "policy-000002", "policy-000001"
WHEN = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_bet_on_a_ballot_of_half_the_weight_is_half_the_bet() -> None:
    # A win against a coin pays 1 + c, at half the weight 1 + c/2; a loss 1 - c/2.
    by_hand = sum((1 + bet) * (1 - bet / 2) for bet in BETS) / 8
    assert math.exp(log_capital({1.0: 1, (0.0, 0.5): 1}, 0.5)) == pytest.approx(by_hand)
    assert log_capital({(1.0, 0.0): 9}, 0.5) == pytest.approx(0.0)
    for null in (0.3, 0.5):  # and is as fair
        for weight in (0.2, 1.0):
            won, lost = Evidence(null), Evidence(null)
            won.add(1.0, weight=weight)
            lost.add(0.0, weight=weight)
            assert null * math.exp(won.log_capital) + (1 - null) * math.exp(lost.log_capital) == pytest.approx(1.0)


def test_the_mean_and_its_bounds_are_by_weight() -> None:
    counts: Counter[float | tuple[float, float]] = Counter({1.0: 30, (0.0, 0.25): 40})
    found = interval(counts, 0.05)
    assert found.mean == pytest.approx(0.75)  # 30 of 40
    assert total_weight(counts) == 40
    assert found.lower > interval({1.0: 30, 0.0: 40}, 0.05).lower
    other = interval(mirrored(counts), 0.05)
    assert (other.lower, other.upper) == (pytest.approx(1 - found.upper), pytest.approx(1 - found.lower))


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_nobody_has_more_than_one_ballot(weight: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Evidence(0.5).add(1.0, weight=weight)


def test_a_ballot_weighs_what_its_voter_did_when_it_closed() -> None:
    asked = []

    def weigh(voter: str, closed: datetime) -> float:
        asked.append((voter, (closed - WHEN) / HOUR))
        return {"ann": 1.0, "ben": 0.5, "cat": 0.0}[voter]

    duels = [Duel(voter, "win", True, WHEN + n * HOUR / 10) for voter in ("ann", "ben", "cat") for n in range(2)]
    found = count(duels, now=WHEN + 9 * HOUR, size=2, idle=HOUR, weigh=weigh)
    assert found.ballots == {1.0: 1, (1.0, 0.5): 1}
    assert found.votes == 6
    assert asked == [("ann", 0.1), ("ben", 0.1), ("cat", 0.1)]
    asked.clear()
    count(duels[:1], now=WHEN + 9 * HOUR, size=2, idle=HOUR, weigh=weigh)
    assert asked == [("ann", 1.0)]  # closed by absence, an hour after the vote


def test_trust_is_what_it_was_at_the_last_turn_before_the_ballot_closed_and_is_worked_out_once_a_turn() -> None:
    looks: list[datetime] = []

    def trust(before: datetime, one: str, other: str | None) -> dict[str, float]:
        looks.append(before)
        return {"ann": 1.0 - len(looks) / 10}

    scales = Scales(trust, 6 * HOUR)

    def weight(voter: str, hours: float) -> float:
        return scales.weigh(NEW, OFFICE, WHEN, voter, WHEN + hours * HOUR)

    assert [weight("ann", hours) for hours in (0.5, 5.9, 6.0, 20.0, 0.5)] == [0.9, 0.9, 0.8, 0.7, 0.9]
    assert weight("new", 7.0) == 1.0
    assert looks == [WHEN, WHEN + 6 * HOUR, WHEN + 18 * HOUR]


Said = tuple[str, tuple[str, str], Choice]
"""Voter, sides, choice."""


def cast(ledger: Ledger, first: int, said: Iterable[Said], at: datetime) -> None:
    def write(connection: Connection) -> None:
        for number, (voter, sides, choice) in enumerate(said, first):
            name = f"pair_{number}"
            pair = shown(name, conversation_id=f"talk_{number}", voter=voter, adapters=sides, shown_at=at)
            shown_and_voted(connection, pair, choice)

    ledger._database.write(write)


@pytest.fixture
def book(ledger: Ledger) -> VoteBook:
    """`left` always takes the left side; twelve others look."""
    said: list[Said] = []
    for voter in ["left", *(f"v{n:02}" for n in range(12))]:
        for turn in range(24):
            careful: Choice = "b" if turn % 4 != 3 else "a"
            sides = (OFFICE, OFFICE) if turn % 2 else (OLD, OFFICE)
            said.append((voter, sides, "a" if voter == "left" else careful))
    cast(ledger, 0, said, WHEN)
    return VoteBook(ledger, VotersConfig(hasty_ms=0, burst_ms=0), most=50_000, fresh_s=0.0)


def test_trust_sees_other_contests_but_not_this_one(book: VoteBook, ledger: Ledger) -> None:
    later = datetime.now(UTC) + HOUR
    known = book.trust_before(later, NEW, OFFICE)
    assert known["left"] < 0.1
    assert known["v00"] > 0.9
    assert book.trust_before(WHEN, NEW, OFFICE) == {}  # before any vote nobody is distrusted
    # Whatever is voted in the contest itself, the trust for it stays the same.
    cast(ledger, 10_000, [("v00", (NEW, OFFICE), "a")] * 30, WHEN)
    assert book.trust_before(later, NEW, OFFICE) == known


def test_a_distrusted_voters_ballots_elect_nobody(book: VoteBook, ledger: Ledger) -> None:
    contest = Contest(NEW, OFFICE, datetime.now(UTC) - HOUR)
    cast(ledger, 20_000, [("left", (NEW, OFFICE), "a")] * 10, datetime.now(UTC))

    def standing(*, weigh: bool) -> tuple[int, int, float]:
        config = ReleasesConfig(canary=CanaryConfig(by_voter=False, weigh=weigh, weigh_every_h=0.001))
        referee = Referee(ledger, config, lambda adapter: (0, 0), book.trust_before)
        found = referee.canary(contest, datetime.now(UTC) + HOUR)
        return found.votes, found.ballots, found.weight

    assert standing(weigh=False) == (10, 10, 10.0)
    assert standing(weigh=True) == (10, 0, 0.0)


def test_weighed_by_real_trust_a_candidate_that_is_no_better_is_seldom_promoted() -> None:
    """The whole figure is the benchmark's; these few runs catch a gross mistake."""
    found = weighed_elections.report(runs=12, seed=3)
    promoted, weighs = found["promoted"], found["mean weight"]
    assert isinstance(promoted, dict)
    assert isinstance(weighs, dict)
    assert promoted["trust, blind to the contest"] <= 2 / 12
    assert weighs["left"] < 0.2 < 0.9 < weighs["careful"]
