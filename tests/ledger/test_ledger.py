"""The contract of the ledger's ballots."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest

from feedback.contracts import PAIR_TOPIC, VOTE_TOPIC, PairShown, VoteCast
from feedback.ledger import (
    Ledger,
    LedgerCounts,
    NotYourConversation,
    NotYourPair,
    PairConflict,
    Tally,
    UnknownPair,
    VoteConflict,
)
from tests.ledger.builders import shown


def vote(ledger, pair_id="pair_1", voter="v_ann", choice="a", **more):
    return ledger.record_vote(pair_id=pair_id, voter=voter, choice=choice, **more)


def test_a_pair_comes_back_as_it_went_in(ledger):
    pair = shown()
    ledger.record_pair(pair)
    assert ledger.pair("pair_1") == pair
    assert ledger.pair("pair_2") is None


def test_a_pair_leaves_an_outbox_row_keyed_by_its_conversation(ledger):
    pair = shown()
    ledger.record_pair(pair)
    (row,) = ledger.pending(10)
    assert (row.event_id, row.topic, row.key) == ("pair_1", PAIR_TOPIC, "talk_1")
    assert PairShown.from_bytes(row.value) == pair


def test_the_same_pair_again_changes_nothing_and_another_under_its_id_is_refused(ledger):
    pair = shown()
    ledger.record_pair(pair)
    ledger.record_pair(pair)
    assert len(ledger.pending(10)) == 1
    with pytest.raises(PairConflict, match="pair_1"):
        ledger.record_pair(shown(adapters=(None, None), shown_at=pair.shown_at))


def test_a_conversation_lists_its_pairs_in_the_order_of_their_showing(ledger):
    for pair_id in ("pair_2", "pair_1", "pair_3"):
        ledger.record_pair(shown(pair_id))
    ledger.record_pair(shown("elsewhere", conversation_id="talk_2"))
    assert [pair.pair_id for pair in ledger.conversation("talk_1")] == ["pair_2", "pair_1", "pair_3"]


def test_a_vote_and_its_outbox_row_carry_all_that_was_said(ledger):
    pair = shown()
    ledger.record_pair(pair)
    outcome = vote(ledger, reasons=("clear", "kind"), comment="ok", edited="better", dwell_ms=1200)
    assert outcome.created
    row = ledger.pending(10)[1]
    assert (row.event_id, row.topic, row.key) == (outcome.vote_id, VOTE_TOPIC, "talk_1")
    event = VoteCast.from_bytes(row.value)
    assert event == ledger.vote_of_id(outcome.vote_id) == ledger.vote("pair_1", "v_ann")
    assert (event.pair, event.choice, event.reasons) == (pair, "a", ("clear", "kind"))
    assert (event.comment, event.edited, event.dwell_ms) == ("ok", "better", 1200)


def test_the_same_vote_again_is_the_first_one(ledger):
    ledger.record_pair(shown())
    first = vote(ledger)
    again = vote(ledger)
    assert not again.created
    assert (again.vote_id, again.choice, again.sides) == (first.vote_id, first.choice, first.sides)
    assert len(ledger.pending(10)) == 2


def test_another_choice_is_a_conflict_that_names_the_first(ledger):
    ledger.record_pair(shown())
    first = vote(ledger, choice="b")
    with pytest.raises(VoteConflict) as caught:
        vote(ledger, choice="tie")
    assert (caught.value.vote_id, caught.value.choice) == (first.vote_id, "b")
    assert ledger.counts().votes == 1


def test_an_unknown_pair_and_anothers_pair_are_refused(ledger):
    ledger.record_pair(shown())
    with pytest.raises(UnknownPair):
        vote(ledger, pair_id="pair_9")
    with pytest.raises(NotYourPair):
        vote(ledger, voter="v_bob")
    assert ledger.counts() == LedgerCounts(conversations=1, pairs=1, votes=0)


def test_racing_votes_make_one_row(ledger):
    ledger.record_pair(shown())
    start = threading.Barrier(8)

    def race(number):
        start.wait()
        try:
            return vote(ledger, choice="ab"[number % 2])
        except VoteConflict as conflict:
            return conflict

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(8)))
    won = [o for o in outcomes if not isinstance(o, VoteConflict) and o.created]
    assert len(won) == 1
    assert {o.vote_id for o in outcomes} == {won[0].vote_id}
    assert sum(isinstance(o, VoteConflict) for o in outcomes) == 4
    assert [row.topic for row in ledger.pending(10)] == [PAIR_TOPIC, VOTE_TOPIC]


def test_many_threads_vote_at_once(ledger):
    for number in range(40):
        ledger.record_pair(shown(f"pair_{number}", conversation_id=f"talk_{number % 7}"))
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda n: vote(ledger, f"pair_{n}"), range(40)))
    assert all(outcome.created for outcome in outcomes)
    assert ledger.counts() == LedgerCounts(conversations=7, pairs=40, votes=40)
    assert len(ledger.pending(100)) == 80


def test_votes_between_is_half_open_and_in_order(ledger):
    cast = []
    for number in range(3):
        ledger.record_pair(shown(f"pair_{number}"))
        cast.append(ledger.vote_of_id(vote(ledger, f"pair_{number}").vote_id))
    assert list(ledger.votes_between()) == cast
    assert list(ledger.votes_between(cast[1].cast_at)) == cast[1:]
    assert list(ledger.votes_between(None, cast[1].cast_at)) == cast[:1]


@pytest.mark.parametrize("votes", [0, 1, 2, 3, 4, 5])
def test_votes_are_read_in_batches_each_once(ledger, monkeypatch, votes):
    monkeypatch.setattr("feedback.ledger.ledger.BATCH", 2)
    for number in range(votes):
        ledger.record_pair(shown(f"pair_{number}"))
        vote(ledger, f"pair_{number}")
    assert [each.pair.pair_id for each in ledger.votes_between()] == [f"pair_{number}" for number in range(votes)]


def test_recent_votes_are_counted_whoever_recorded_them(ledger, url):
    ledger.record_pair(shown("pair_1"))
    ledger.record_pair(shown("pair_2"))
    first = ledger.vote_of_id(vote(ledger, "pair_1").vote_id)
    with closing(Ledger.open(url)) as other:
        second = other.vote_of_id(vote(other, "pair_2").vote_id)
    assert ledger.votes_since(first.cast_at) == (2, first.cast_at)
    assert ledger.votes_since(second.cast_at) == (1, second.cast_at)
    assert ledger.votes_since(second.cast_at + timedelta(seconds=1)) == (0, None)


def test_tallies_count_by_adapters_positions_and_choice(ledger):
    seen = [(("policy-000001", None), "a"), (("policy-000001", None), "a"), ((None, "policy-000001"), "tie")]
    for number, (adapters, choice) in enumerate(seen):
        ledger.record_pair(shown(f"pair_{number}", adapters=adapters))
        vote(ledger, f"pair_{number}", choice=choice)
    assert set(ledger.tallies()) == {
        Tally("policy-000001", None, "a", 2),
        Tally(None, "policy-000001", "tie", 1),
    }


def test_listeners_hear_of_every_commit_that_left_something_to_send(ledger):
    heard = []
    ledger.on_outbox(lambda: heard.append(len(ledger.pending(10))))
    ledger.record_pair(shown())
    vote(ledger)
    vote(ledger)
    assert heard == [1, 2]


def test_a_conversation_belongs_to_who_began_it(ledger):
    ledger.record_pair(shown())
    with pytest.raises(NotYourConversation, match="talk_1"):
        ledger.record_pair(shown("pair_2", voter="v_bob"))
    with pytest.raises(NotYourConversation, match="talk_1"):
        ledger.require_conversation("talk_1", "v_bob")
    ledger.require_conversation("talk_1", "v_ann")
    ledger.require_conversation("talk_2", "v_bob")
    assert (ledger.counts().pairs, len(ledger.pending(10))) == (1, 1)
