"""kill -9 while people vote: whatever was acknowledged is there."""

import subprocess
import sys

import pytest

from feedback.contracts import VOTE_TOPIC, VoteCast
from feedback.ledger import Ledger, LedgerUnavailable

VOTER = """
import sys, threading
from feedback.ledger import Ledger
from tests.ledger.builders import shown

ledger, out = Ledger.open(sys.argv[1]), threading.Lock()

def vote(worker):
    for number in range(100_000):
        pair_id = f"{sys.argv[2]}_{worker}_{number}"
        ledger.record_pair(shown(pair_id, conversation_id=f"talk_{worker}"))
        outcome = ledger.record_vote(pair_id=pair_id, voter="v_ann", choice="a")
        with out:
            print(outcome.vote_id, flush=True)

for worker in range(4):
    threading.Thread(target=vote, args=(worker,)).start()
"""


def killed_after(url, run, votes):
    """Ids that a voting process acknowledged before it was killed."""
    process = subprocess.Popen([sys.executable, "-c", VOTER, url, f"run{run}"], stdout=subprocess.PIPE, text=True)
    seen = [process.stdout.readline() for _ in range(votes)]
    process.kill()
    seen += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    # The last line may be torn by the kill; an id that is whole was acknowledged.
    return {line.strip() for line in seen if line.endswith("\n")}


@pytest.mark.slow
def test_every_acknowledged_vote_survives_kill_9_with_its_outbox_row(url):
    acknowledged = set()
    for run in range(3):
        acknowledged |= killed_after(url, run, votes=15 + 10 * run)
        ledger = Ledger.open(url)
        kept = {vote.vote_id for vote in ledger.votes_between()}
        assert acknowledged <= kept
        told = {VoteCast.from_bytes(r.value).vote_id for r in ledger.pending(100_000) if r.topic == VOTE_TOPIC}
        assert told == kept
        ledger.close()


@pytest.mark.slow
def test_a_postgres_that_is_killed_and_started_again_keeps_every_vote(postgres):
    url = postgres.new_database("crashed")
    acknowledged = killed_after(url, 0, votes=30)
    ledger = Ledger.open(url)
    postgres.stop("immediate")
    with pytest.raises(LedgerUnavailable):
        ledger.counts()
    postgres.start()
    assert acknowledged <= {vote.vote_id for vote in ledger.votes_between()}
    ledger.close()
