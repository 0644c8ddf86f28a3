"""A forgotten voter's rows go from the ledger in one transaction, and nothing sends their events again."""

from datetime import timedelta

import pytest

from feedback.contracts import FORGOTTEN_TOPIC, VoterForgotten, utc_now
from feedback.ledger import Ledger, LedgerCounts, UnknownPair
from feedback.replay import LEDGER_TOPICS, replay_ledger
from tests.fakes.event_log import FakeEventLog
from tests.ledger.builders import shown


@pytest.fixture
def two_voters(ledger):
    for number, voter in enumerate(("v_ann", "v_bob", "v_ann")):
        ledger.record_pair(shown(f"pair_{number}", conversation_id=f"talk_{number}", voter=voter))
        ledger.record_vote(pair_id=f"pair_{number}", voter=voter, choice="a", comment=f"by {voter}")
    return ledger


def test_everything_of_a_voter_goes_and_nothing_of_another(two_voters):
    gone = two_voters.forget("v_ann")
    assert (gone.conversations, gone.pairs, gone.votes) == (2, 2, 2)
    assert two_voters.counts() == LedgerCounts(1, 1, 1)
    assert two_voters.pair("pair_0") is None
    assert two_voters.vote("pair_1", "v_bob") is not None
    with pytest.raises(UnknownPair):
        two_voters.record_vote(pair_id="pair_0", voter="v_ann", choice="a")


def test_the_outbox_holds_the_tombstone_in_their_place(two_voters):
    gone = two_voters.forget("v_ann")
    rows = two_voters.pending(100)
    assert [row.event_id for row in rows if row.topic != FORGOTTEN_TOPIC and b"v_ann" in row.value] == []
    assert len(rows) == 3
    assert (rows[-1].topic, rows[-1].key) == (FORGOTTEN_TOPIC, "v_ann")
    assert VoterForgotten.from_bytes(rows[-1].value) == gone.event
    assert two_voters.forgotten() == [gone.event]


def test_a_replay_sends_the_tombstone_and_not_their_events(two_voters):
    gone = two_voters.forget("v_ann")
    sent = [row.event_id for row in two_voters.pending(100)]
    two_voters.mark_sent([row.seq for row in two_voters.pending(100)])
    assert two_voters.mark_confirmed(sent) == 3
    log = FakeEventLog()
    replay_ledger(two_voters, log)
    values = [record.value for topic in LEDGER_TOPICS for record in log.records(topic)]
    assert len(values) == 3
    assert gone.event.to_bytes() in values
    assert not any(b"by v_ann" in value for value in values)


def test_a_voter_who_comes_back_starts_anew(two_voters):
    two_voters.forget("v_ann")
    two_voters.record_pair(shown("pair_9", conversation_id="talk_9"))
    assert two_voters.record_vote(pair_id="pair_9", voter="v_ann", choice="b").created
    assert two_voters.forget("v_ann").votes == 1
    assert len(two_voters.forgotten()) == 2


def test_a_clock_that_ran_ahead_does_not_save_an_event(ledger):
    ahead = utc_now() + timedelta(days=2)
    ledger.record_pair(shown(shown_at=ahead))
    assert ledger.forget("v_ann").event.covers("v_ann", ahead)


def test_no_byte_of_theirs_is_left_in_the_files(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    ledger.record_pair(shown(voter="v_ann"))
    ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="a", comment="a secret of Ann's " * 500)
    sent = ledger.pending(10)
    ledger.mark_sent([row.seq for row in sent])
    ledger.mark_confirmed([row.event_id for row in sent])
    ledger.forget("v_ann")
    found = [path.name for path in tmp_path.iterdir() if b"secret of Ann" in path.read_bytes()]
    ledger.close()
    assert found == []
