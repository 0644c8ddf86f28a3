"""Erasing on real brokers: Apache Kafka deletes what was read, the embedded broker gives its memory back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from feedback.broker import EmbeddedBroker
from feedback.config import FeedbackConfig
from feedback.curator import Curator
from feedback.dataset import Dataset
from feedback.event_log import OutgoingRecord
from feedback.kafka_log import KafkaEventLog
from feedback.ledger import Ledger
from feedback.relay import Relay
from tests.feedback.brokers import ApacheKafka
from tests.feedback.events import pair

pytestmark = pytest.mark.slow


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)  # other processes tell nothing; bounded by timeout_s
    return False


def test_kafka_deletes_what_a_group_has_read_and_keeps_the_rest(apache_broker: ApacheKafka, unique: str) -> None:
    log = KafkaEventLog(apache_broker.address, partitions=3)
    log.ensure_topics([unique])
    assert log.ends([unique, f"{unique}-missing"]) == {}

    def send(*names: str) -> None:
        with closing(log.producer()) as producer:
            assert producer.send([OutgoingRecord(unique, name, name.encode()) for name in names]) == [None] * len(names)

    def read(group: str | None, count: int) -> set[str]:
        found: set[str] = set()
        with closing(log.consumer([unique], group)) as consumer:
            assert wait_for(
                lambda: found.update(r.value.decode() for r in consumer.poll(0.2) if r.value) or len(found) >= count, 30
            )
            consumer.poll(0.2)
            consumer.commit()
        return found

    early = {f"early{number}" for number in range(20)}
    send(*early)
    ends = log.ends([unique])
    assert sum(ends.values()) == 20
    assert read(f"{unique}-other", 20) == early
    assert log.erase(ends, f"{unique}-group") is False  # it has read nothing
    assert read(f"{unique}-group", 20) == early
    send("late1", "late2")
    assert log.erase(ends, f"{unique}-group") is True
    assert read(None, 2) == {"late1", "late2"}
    assert log.erase(ends, f"{unique}-group") is True  # once more does no harm
    assert log.in_memory() is False
    assert read(f"{unique}-group", 2) == {"late1", "late2"}


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


ROUNDS, PAIRS_A_ROUND = 10, 8
HELD_MB = 8
GROWTH_MB = 44
"""Between what it grows by with the limit (8 to 25 MiB at the end of a round, however much has passed) and without: 83
(docs/log.md)."""


def test_the_embedded_broker_stays_small_and_every_vote_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 MiB of pairs and votes pass through it."""
    monkeypatch.setattr("feedback.erasing.LOOK_S", 0.2)
    monkeypatch.setattr("feedback.relay.TOPICS_CHECK_S", 0.5)
    broker = EmbeddedBroker(0)
    log = KafkaEventLog(broker.start(), partitions=1)
    config = FeedbackConfig(curate_linger_s=0.0, broker_holds_mb=HELD_MB, relay_idle_s=0.1, receipt_timeout_s=10)
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    dataset = Dataset(tmp_path / "dataset")
    relay, stop = Relay(ledger, log, config), threading.Event()
    curating = threading.Thread(target=Curator(KafkaEventLog(broker.address, 1), dataset, config).run, args=(stop,))
    assert broker.pid is not None
    grown: list[float] = []

    def settled() -> bool:
        stats = ledger.outbox_stats()  # once: between two looks what was pending can be sent, and either sees nothing
        return stats.pending + stats.unconfirmed == 0

    try:
        relay.start()
        curating.start()
        before = resident_mb(broker.pid)
        for number in range(ROUNDS * PAIRS_A_ROUND):
            shown = pair(number)
            noise = os.urandom(256 * 1024).hex()
            left = shown.completions[0].model_copy(update={"text": noise})
            shown = shown.model_copy(update={"completions": (left, shown.completions[1])})
            ledger.record_pair(shown)
            ledger.record_vote(pair_id=shown.pair_id, voter=shown.voter, choice="a")
            if (number + 1) % PAIRS_A_ROUND == 0:  # 8 MiB more: half a MiB a pair, and as much again with its vote
                assert wait_for(settled, 90)
                grown.append(round(resident_mb(broker.pid) - before, 1))
    finally:
        stop.set()
        relay.stop()
        curating.join(20)
        ledger.close()
        broker.stop()
    votes = [one.vote_id for one in Dataset(tmp_path / "dataset").votes()]
    assert (len(votes), len(set(votes)), len(list(dataset.pairs()))) == (80, 80, 80)
    assert max(grown) < GROWTH_MB, grown
