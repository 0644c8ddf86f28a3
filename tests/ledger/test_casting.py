"""Many votes in one transaction: each stands and falls alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from feedback.contracts import MAX_COMMENT, VOTE_TOPIC, VoteCast
from feedback.ledger import Ledger, NotYourPair, UnknownPair, VoteConflict, VoteDraft, ballots, casting, rows
from tests.ledger.builders import shown


def kinds(outcomes):
    return [type(o) if isinstance(o, Exception) else o.created for o in outcomes]


def vote_rows(ledger):
    return [row for row in ledger.pending(1000) if row.topic == VOTE_TOPIC]


def test_each_draft_gets_its_own_answer_in_order(ledger):
    for number in range(4):
        ledger.record_pair(shown(f"pair_{number}"))
    before = ledger.record_vote(pair_id="pair_0", voter="v_ann", choice="a")
    outcomes = ledger.record_votes(
        [
            VoteDraft("pair_9", "v_ann", "a"),
            VoteDraft("pair_3", "v_ann", "b"),
            VoteDraft("pair_1", "v_bob", "a"),
            VoteDraft("pair_0", "v_ann", "a"),
            VoteDraft("pair_0", "v_ann", "tie"),
            VoteDraft("pair_1", "v_ann", "both_bad"),
        ]
    )
    assert kinds(outcomes) == [UnknownPair, True, NotYourPair, False, VoteConflict, True]
    assert outcomes[3].vote_id == outcomes[4].vote_id == before.vote_id
    assert [row.event_id for row in vote_rows(ledger)] == [before.vote_id, outcomes[1].vote_id, outcomes[5].vote_id]
    assert ledger.counts().votes == 3


def test_of_two_votes_on_one_pair_in_one_call_the_first_stands(ledger):
    ledger.record_pair(shown())
    outcomes = ledger.record_votes([VoteDraft("pair_1", "v_ann", choice) for choice in ("b", "b", "a")])
    assert kinds(outcomes) == [True, False, VoteConflict]
    assert outcomes[0].vote_id == outcomes[1].vote_id == outcomes[2].vote_id
    assert ledger.counts().votes == len(vote_rows(ledger)) == 1


def test_a_vote_beyond_the_contract_is_refused_alone(ledger):
    ledger.record_pair(shown())
    ledger.record_pair(shown("pair_2"))
    drafts = [
        VoteDraft("pair_1", "v_ann", "a", comment="x" * (MAX_COMMENT + 1)),
        VoteDraft("pair_2", "v_ann", "a", comment="x" * MAX_COMMENT),
    ]
    assert kinds(ledger.record_votes(drafts)) == [ValidationError, True]


def test_an_error_of_the_database_hits_only_the_vote_that_caused_it(ledger, monkeypatch):
    """PostgreSQL says so of a pair that was forgotten between two statements."""
    real = casting.record_votes

    def refuse(connection, drafts):
        if any(draft.pair_id == "pair_1" for draft in drafts):
            raise IntegrityError("insert", {}, Exception("the pair has gone"))
        return real(connection, drafts)

    monkeypatch.setattr(casting, "record_votes", refuse)
    for number in range(3):
        ledger.record_pair(shown(f"pair_{number}"))
    outcomes = ledger.record_votes([VoteDraft(f"pair_{number}", "v_ann", "a") for number in range(3)])
    assert kinds(outcomes) == [True, IntegrityError, True]
    with pytest.raises(IntegrityError):
        ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="a")


def test_the_bytes_on_the_wire_are_the_events_own(ledger):
    """They are put together out of two halves; a comment that looks like the seam is no seam."""
    ledger.record_pair(shown())
    (outcome,) = ledger.record_votes(
        [VoteDraft("pair_1", "v_ann", "a", ("clear",), ',"voter":"v_eve"', 'I say: ,"pair":{}', 5)]
    )
    (row,) = vote_rows(ledger)
    vote = VoteCast.from_bytes(row.value)
    assert row.value == vote.to_bytes()
    assert vote == ledger.vote_of_id(outcome.vote_id) == ledger.vote("pair_1", "v_ann")
    assert (vote.voter, vote.comment, vote.pair) == ("v_ann", ',"voter":"v_eve"', ledger.pair("pair_1"))
    assert [(side.position, side.adapter) for side in outcome.sides] == [
        (completion.position, completion.adapter) for completion in vote.pair.completions
    ]
    assert outcome.sides[0].sampling == vote.pair.completions[0].sampling.model_dump()


def test_no_drafts_are_no_votes(ledger):
    assert ledger.record_votes([]) == []


def test_two_servings_that_get_the_same_votes_in_opposite_orders_record_each_once(ledger, url):
    """A group that held one row and waited for another's would end in a deadlock on PostgreSQL."""
    names = [f"pair_{number:03d}" for number in range(300)]
    ledger._database.write(lambda connection: [ballots.record_pair(connection, shown(name)) for name in names])
    drafts = [VoteDraft(name, "v_ann", "a") for name in names]
    other, ready = Ledger.open(url), threading.Barrier(2)

    def cast(by, group):
        ready.wait(10)
        return by.record_votes(group)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(cast, (ledger, other), (drafts, drafts[::-1]))
    other.close()
    ids = [(one.vote_id, same.vote_id) for one, same in zip(first, second[::-1], strict=True)]
    assert all(one == same for one, same in ids)
    assert sum(outcome.created for outcome in (*first, *second)) == len(vote_rows(ledger)) == 300


def test_a_group_is_recorded_by_three_plain_statements(ledger):
    """Each step of the driver lets go of the interpreter's lock, and waits until the event loop does."""
    for number in range(40):
        ledger.record_pair(shown(f"pair_{number}"))
    said = []

    def note(_connection, _cursor, statement, parameters, _context, many):
        said.append((statement.split()[0], many, len(parameters)))

    event.listen(ledger._database._writing, "before_cursor_execute", note)
    outcomes = ledger.record_votes([VoteDraft(f"pair_{number}", "v_ann", "a") for number in range(40)])
    assert kinds(outcomes) == [True] * 40
    found = [each for each in said if each[0] in {"SELECT", "INSERT"}]
    assert [(verb, many) for verb, many, _ in found] == [("SELECT", False), ("INSERT", False), ("INSERT", False)]
    assert [values for _, _, values in found[1:]] == [40 * 7, 40 * 6]


def test_a_group_that_is_more_than_a_statement_takes_goes_in_several(ledger, monkeypatch):
    monkeypatch.setattr(rows, "AT_ONCE", 3)
    for number in range(8):
        ledger.record_pair(shown(f"pair_{number}"))
    first = ledger.record_vote(pair_id="pair_4", voter="v_ann", choice="a")
    outcomes = ledger.record_votes([VoteDraft(f"pair_{number}", "v_ann", "a") for number in range(8)])
    assert kinds(outcomes) == [True] * 4 + [False] + [True] * 3
    told = [outcome.vote_id for outcome in outcomes if outcome.created]
    assert [row.event_id for row in vote_rows(ledger)] == [first.vote_id, *told]
    ledger.mark_sent([row.seq for row in ledger.pending(100)])
    assert (ledger.outbox_stats().pending, ledger.outbox_stats().unconfirmed) == (0, 16)


@pytest.mark.parametrize("name", ["it's", 'a "b" \\ {}', "pär ☕ \u2028\t", "%s ? :x"])
def test_names_are_names_whatever_is_in_them(ledger, name):
    ledger.record_pair(shown(name, conversation_id=name, voter=name, adapters=(name, None, "plain")))
    (outcome,) = ledger.record_votes([VoteDraft(name, name, "tie")])
    assert [(side.position, side.adapter) for side in outcome.sides] == [("a", name), ("b", None), ("c", "plain")]
    assert {side.sampling["seed"] for side in outcome.sides} == {7}
    (row,) = vote_rows(ledger)
    assert row.key == name
    assert ledger.vote(name, name).pair == ledger.pair(name)
