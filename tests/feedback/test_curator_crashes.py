"""Kill -9 where it hurts: every vote is in the snapshot once, on every broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from benchmarks.waiting import wait_until
from feedback.config import FeedbackConfig
from feedback.contracts import PAIR_TOPIC, RECEIPT_TOPIC, TOPICS, VOTE_TOPIC, RecordsCurated
from feedback.curator import Curator
from feedback.dataset import Dataset
from feedback.dataset.parts import read_rows
from feedback.event_log import EventConsumer, EventLogUnavailable, OutgoingRecord
from feedback.kafka_log import KafkaEventLog
from feedback.ledger import Ledger
from feedback.relay import Relay
from tests.feedback.brokers import ApacheKafka, Embedded
from tests.feedback.events import pair, vote

EVENTS = 50
PATIENCE_S = 120.0
CONFIG = FeedbackConfig(curate_linger_s=0.2, curate_batch=40, receipt_timeout_s=20)


@contextmanager
def curator_process(address: str, folder: Path, point: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.feedback.curator_process", address, str(folder), point]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def curating(log: KafkaEventLog, dataset: Dataset) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Curator(log, dataset, CONFIG).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def wait_for_receipts(consumer: EventConsumer, wanted: set[str], timeout_s: float = 90) -> None:
    seen: set[str] = set()
    deadline = time.monotonic() + timeout_s
    while not wanted <= seen:
        assert time.monotonic() < deadline, f"{len(wanted - seen)} events without a receipt"
        try:
            records = consumer.poll(0.3)
        except EventLogUnavailable:
            continue
        for record in records:
            seen.update(RecordsCurated.from_bytes(record.value or b"").event_ids)


def assert_each_once(folder: Path, wanted: set[str]) -> None:
    """In the snapshot (Apache Kafka's topics also hold what earlier tests sent)."""
    dataset = Dataset(folder)
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    votes = snapshot.preferences["vote_id"].to_pylist() + snapshot.ties["vote_id"].to_pylist()
    assert sorted(vote_id for vote_id in votes if vote_id in wanted) == sorted(wanted)
    assert len(votes) == len(set(votes))


def empty(broker: Embedded | ApacheKafka) -> None:
    """Topics have fixed names: the embedded broker starts afresh, Apache Kafka's earlier events stay."""
    if isinstance(broker, Embedded):
        broker.kill()
        broker.start()
    broker.log().ensure_topics(TOPICS)


@pytest.mark.parametrize("point", ["parts", "receipts"])
def test_a_curator_killed_at_a_marked_point_doubles_nothing(
    real_broker: Embedded | ApacheKafka, tmp_path: Path, point: str
) -> None:
    empty(real_broker)
    log = real_broker.log()
    first = 1_000 if point == "parts" else 2_000
    numbers = range(first, first + EVENTS)
    with closing(log.producer()) as producer:
        for start in range(0, EVENTS, 25):
            some = numbers[start : start + 25]
            producer.send([OutgoingRecord(PAIR_TOPIC, f"c{n % 5}", pair(n).to_bytes()) for n in some])
            producer.send([OutgoingRecord(VOTE_TOPIC, f"c{n % 5}", vote(n).to_bytes()) for n in some])
    for _ in range(2):
        with curator_process(real_broker.address, tmp_path, point) as process:
            assert process.wait(60) == -signal.SIGKILL
    assert list((tmp_path / "votes").glob("*.parquet")) or list((tmp_path / "pairs").glob("*.parquet"))
    wanted = {f"p{n}" for n in numbers} | {f"w{n}" for n in numbers}
    with (
        closing(log.consumer([RECEIPT_TOPIC], None)) as receipts,
        curating(KafkaEventLog(real_broker.address), Dataset(tmp_path)),
    ):
        wait_for_receipts(receipts, wanted)
    assert_each_once(tmp_path, {f"w{n}" for n in numbers})
    stored = [row.id for row in read_rows(sorted((tmp_path / "votes").glob("*.parquet")))]
    assert len(stored) == len(set(stored)), "one curator at a time stores nothing twice, even in the parts"


def test_every_vote_arrives_once_though_broker_and_curator_are_killed(
    real_broker: Embedded | ApacheKafka, tmp_path: Path
) -> None:
    """Ledger, relay and curator together; the broker and then the curator die (kill -9) with votes under way."""
    empty(real_broker)
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    relay = Relay(ledger, KafkaEventLog(real_broker.address), CONFIG)
    relay.start()
    data = tmp_path / "dataset"
    wanted: set[str] = set()

    def cast(numbers: range) -> None:
        for n in numbers:
            ledger.record_pair(pair(n))
            outcome = ledger.record_vote(pair_id=f"p{n}", voter=pair(n).voter, choice=vote(n).choice)
            wanted.add(outcome.vote_id)

    try:
        with curator_process(real_broker.address, data, "never") as curator:
            cast(range(0, 30))
            wait_until(lambda: any((data / "votes").glob("*.parquet")), PATIENCE_S, 0.1)
            real_broker.kill()
            cast(range(30, 60))
            real_broker.start()
            cast(range(60, 90))
            curator.kill()
        cast(range(90, 120))
        with curator_process(real_broker.address, data, "never"):
            # One look: between two, what is sent again is in neither.
            wait_until(lambda: (one := ledger.outbox_stats()).pending + one.unconfirmed == 0, PATIENCE_S, 0.1)
    finally:
        relay.stop()
        ledger.close()
    assert len(wanted) == 120
    assert_each_once(data, wanted)
