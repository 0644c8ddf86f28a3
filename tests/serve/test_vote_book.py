from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from feedback.config import VotersConfig
from feedback.contracts import PairShown, VoteCast
from feedback.ledger import Ledger, ballots
from serve.vote_book import VoteBook
from tests.feedback.events import pair


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cast(ledger: Ledger, number: int) -> None:
    shown: PairShown = pair(number).model_copy(update={"conversation_id": f"c{number}"})
    ledger.record_pair(shown)
    ledger.record_vote(pair_id=shown.pair_id, voter=shown.voter, choice="b")


def test_new_votes_are_taken_in_when_the_news_are_old(ledger: Ledger) -> None:
    clock = Clock()
    book = VoteBook(ledger, VotersConfig(), most=100, fresh_s=10, clock=clock)
    assert book.news().board.votes == 0
    cast(ledger, 1)
    assert book.news().board.votes == 0
    clock.now = 10.0
    first = book.news()
    assert (first.board.votes, first.board.contenders[0].wins) == (1, 1)
    assert book.voter_weights() == {"v_1": 1.0}
    for number in range(2, 7):
        cast(ledger, number)
    clock.now = 20.0
    assert book.news().board.votes == 6
    clock.now = 30.0
    assert book.news().board.votes == 6


def test_news_that_take_long_are_kept_for_twenty_times_as_long(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    book = VoteBook(ledger, VotersConfig(), most=100, fresh_s=10, clock=clock)
    real = Ledger.forgotten

    def slow(self: Ledger) -> object:
        clock.now += 3.0
        return real(self)

    monkeypatch.setattr(Ledger, "forgotten", slow)
    cast(ledger, 1)
    assert book.news().board.votes == 1
    cast(ledger, 2)
    clock.now = 59.9
    assert book.news().board.votes == 1
    clock.now = 60.0
    assert book.news().board.votes == 2


def test_only_the_newest_are_kept(ledger: Ledger) -> None:
    for number in range(6):
        cast(ledger, number)
    book = VoteBook(ledger, VotersConfig(), most=4, fresh_s=0)
    assert book.news().board.votes == 4
    cast(ledger, 6)
    assert book.news().board.votes == 4
    assert "p6" in {ballot.pair_id for _, cast in book._ballots.values() for ballot in cast}


def test_a_forgotten_voter_is_forgotten_here_too(ledger: Ledger) -> None:
    book = VoteBook(ledger, VotersConfig(), most=100, fresh_s=0)
    for number in range(6):
        cast(ledger, number)
    assert set(book.voter_weights()) == {"v_0", "v_1", "v_2"}
    ledger.forget("v_1")
    assert set(book.voter_weights()) == {"v_0", "v_2"}
    assert book.news().board.votes == 4


def test_votes_after_the_clock_was_set_back_count_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    monkeypatch.setattr(ballots, "VoteCast", partial(VoteCast, cast_at=tomorrow))
    book = VoteBook(ledger, VotersConfig(), most=100, fresh_s=0)
    for number in range(3):
        cast(ledger, number)
    assert book.news().board.votes == 3
    monkeypatch.setattr(ballots, "VoteCast", VoteCast)
    cast(ledger, 3)
    assert book.news().board.votes == 4
    cast(ledger, 4)
    assert book.news().board.votes == 5


def test_a_vote_that_comes_late_to_the_ledger_is_not_missed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    book = VoteBook(ledger, VotersConfig(), most=100, fresh_s=0)
    cast(ledger, 1)
    assert book.news().board.votes == 1
    real = Ledger.votes_after
    late = real(ledger, (-1, ""))[0][1]
    late = late.model_copy(update={"vote_id": "vote_late", "cast_at": late.cast_at - timedelta(seconds=20)})
    place = (int(late.cast_at.timestamp() * 1e6), "vote_late")
    monkeypatch.setattr(Ledger, "votes_after", lambda self, after: [(place, late)] if after < place else [])
    assert book.news().board.votes == 2
