"""Ledger, relay, broker, curator and dataset, all real, while the broker and the curator are killed."""

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from feedback.config import FeedbackConfig
from feedback.dataset import Dataset
from feedback.kafka_log import KafkaEventLog
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from feedback.relay import Relay
from tests.ledger.builders import shown

# The Kafka client leaves the sockets of failed connections to the garbage collector, which complains.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

VOTES = 60
CURATOR = """
import sys, threading
from pathlib import Path
from feedback.config import FeedbackConfig
from feedback.curator import main
from feedback.paths import DataPaths

config = FeedbackConfig(curate_linger_s=0.1, curate_batch=10, curator_metrics_port=0)
main(config, DataPaths(Path(sys.argv[1])), sys.argv[2], threading.Event())
"""


@pytest.fixture
def paths(tmp_path):
    made = DataPaths(tmp_path)
    made.create()
    return made


@pytest.fixture
def ledger(paths):
    opened = Ledger.open(paths.ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def relay(ledger, broker):
    made = Relay(ledger, KafkaEventLog(broker.address), FeedbackConfig(receipt_timeout_s=5))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def curate(paths, broker):
    running = []

    def start():
        command = [sys.executable, "-c", CURATOR, str(paths.root), broker.address]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def vote(ledger, number):
    ledger.record_pair(shown(f"pair_{number}", conversation_id=f"talk_{number % 5}"))
    choice = ("a", "b", "tie", "both_bad")[number % 4]
    return ledger.record_vote(pair_id=f"pair_{number}", voter="v_ann", choice=choice).vote_id


def wait_until_confirmed(ledger, timeout_s=90):
    tick, deadline = threading.Event(), time.monotonic() + timeout_s
    while (stats := ledger.outbox_stats()).pending + stats.unconfirmed:
        assert time.monotonic() < deadline, f"not confirmed in time: {stats}"
        tick.wait(0.05)


def test_every_vote_is_in_the_snapshot_once_though_broker_and_curator_are_killed(paths, ledger, broker, relay, curate):
    with ThreadPoolExecutor(3) as people:
        first = curate()
        cast = list(people.map(lambda n: vote(ledger, n), range(20)))
        wait_until_confirmed(ledger)

        voting = [people.submit(vote, ledger, number) for number in range(20, 40)]
        first.kill()
        first.wait()
        cast += [future.result() for future in voting]

        voting = [people.submit(vote, ledger, number) for number in range(40, VOTES)]
        broker.kill()
        cast += [future.result() for future in voting]
        broker.start()
        curate()
        wait_until_confirmed(ledger)

    dataset = Dataset(paths.dataset)
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    found = Counter(snapshot.preferences["vote_id"].to_pylist() + snapshot.ties["vote_id"].to_pylist())
    assert found == Counter(cast)
    assert len(cast) == VOTES
    assert sorted(snapshot.prompts["pair_id"].to_pylist()) == sorted(f"pair_{number}" for number in range(VOTES))
    assert relay.status().connected
