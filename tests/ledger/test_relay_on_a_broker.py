"""The relay, the ledger and a real broker that is killed."""

import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import PAIR_TOPIC, RECEIPT_TOPIC, VOTE_TOPIC, PairShown, RecordsCurated, VoteCast
from feedback.event_log import EventLogUnavailable, OutgoingRecord
from feedback.kafka_log import KafkaApart, KafkaEventLog
from feedback.ledger import Ledger
from feedback.relay import Relay
from tests.ledger.builders import shown
from tests.ledger.test_relay import eventually, settled

# The client leaves the sockets of failed connections to the garbage collector, which complains; see `broker`.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def relay(broker, ledger):
    made = Relay(ledger, KafkaEventLog(broker.address), FeedbackConfig())
    made.start()
    yield made
    made.stop()


class Reader:
    """Reads pairs and votes from the beginning, and keeps the order in which ids first came."""

    def __init__(self, address):
        self.consumer = KafkaEventLog(address).consumer([PAIR_TOPIC, VOTE_TOPIC], group=None)
        self.seen = []

    def has(self, *ids):
        try:
            records = self.consumer.poll(0.2)
        except EventLogUnavailable:
            return False
        for record in records:
            event = (PairShown if record.topic == PAIR_TOPIC else VoteCast).from_bytes(record.value)
            self.seen.append(event.pair_id if isinstance(event, PairShown) else event.vote_id)
        return set(ids) <= set(self.seen)


def voted(ledger, number):
    ledger.record_pair(shown(f"pair_{number}", conversation_id=f"talk_{number % 3}"))
    return ledger.record_vote(pair_id=f"pair_{number}", voter="v_ann", choice="a").vote_id


def test_a_killed_broker_loses_no_vote_and_confirmed_ones_stay_quiet(broker, ledger, relay):
    first = [voted(ledger, number) for number in range(20)]
    reader = Reader(broker.address)
    eventually(lambda: reader.has(*first), 20)
    reader.consumer.close()
    receipt = RecordsCurated(event_ids=tuple(first[:15])).to_bytes()
    sender = KafkaEventLog(broker.address).producer()
    assert sender.send([OutgoingRecord(RECEIPT_TOPIC, "curator", receipt)]) == [None]
    sender.close()
    eventually(settled(ledger, unconfirmed=25), 20)

    broker.kill()
    while_it_was_away = [voted(ledger, number) for number in range(20, 30)]
    broker.start()
    again = Reader(broker.address)
    # A batch in flight takes the client up to its delivery timeout of ten seconds to give up.
    eventually(lambda: again.has(*first[15:], *while_it_was_away), 60)
    assert not set(first[:15]) & set(again.seen)
    again.consumer.close()
    assert relay.status().running


def test_the_kafka_clients_process_is_killed_again_and_again_and_nothing_is_lost(broker, ledger):
    apart = KafkaApart(broker.address)
    relay = Relay(ledger, apart, FeedbackConfig())
    relay.start()
    try:
        reader = Reader(broker.address)
        votes = []
        for kill in range(4):
            votes += [voted(ledger, number) for number in range(10 * kill, 10 * kill + 10)]
            eventually(lambda: apart._child is not None, 20)
            apart.close()
        eventually(lambda: reader.has(*votes), 60)
        for talk in range(3):  # repeats aside, each conversation's votes are in their order
            mine = votes[talk::3]
            assert [one for one in dict.fromkeys(reader.seen) if one in mine] == mine
        eventually(lambda: relay.status().connected, 20)
        reader.consumer.close()
    finally:
        relay.stop()
        apart.close()
