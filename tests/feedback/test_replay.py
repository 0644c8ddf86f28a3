from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import (
    FORGOTTEN_TOPIC,
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    TOPICS,
    VOTE_TOPIC,
    Message,
    RecordsCurated,
    VoteCast,
)
from feedback.curator import Curator
from feedback.dataset import Dataset
from feedback.dataset.importing import import_file
from feedback.event_log import EventLogError, EventLogUnavailable, EventProducer, OutgoingRecord
from feedback.ledger import Ledger
from feedback.ledger.outbox import OutboxStats
from feedback.relay import Relay
from feedback.replay import LEDGER_TOPICS, ReplayError, replay_dataset, replay_ledger
from tests.fakes.event_log import FakeEventLog
from tests.feedback.events import pair, vote
from tests.feedback.test_forgetting import EVENT

VOTES = 12


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    for n in range(VOTES):
        opened.record_pair(pair(n))
        opened.record_vote(pair_id=f"p{n}", voter=pair(n).voter, choice=vote(n).choice)
    yield opened
    opened.close()


@contextmanager
def curating(log: FakeEventLog, dataset: Dataset) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Curator(log, dataset, FeedbackConfig(curate_linger_s=0.0)).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


@contextmanager
def relaying(ledger: Ledger, log: FakeEventLog) -> Iterator[None]:
    relay = Relay(ledger, log, FeedbackConfig(relay_idle_s=0.01, relay_batch=5))
    relay.start()
    try:
        yield
    finally:
        relay.stop()


def until(predicate: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    tick, deadline = threading.Event(), time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            return False
        tick.wait(0.02)
    return True


def receipts(log: FakeEventLog) -> int:
    records = log.records(RECEIPT_TOPIC)
    return sum(len(RecordsCurated.from_bytes(record.value or b"").event_ids) for record in records)


def snapshot_bytes(root: Path, snapshot_id: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "snapshots" / snapshot_id).iterdir()}


def test_a_replay_changes_no_snapshot(ledger: Ledger, tmp_path: Path) -> None:
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    dataset = Dataset(tmp_path / "dataset")
    with curating(log, dataset):
        assert replay_ledger(ledger, log) == {PAIR_TOPIC: VOTES, VOTE_TOPIC: VOTES}
        assert log.wait_for(lambda: receipts(log) == 2 * VOTES)
    before = dataset.build_snapshot()
    bytes_before = snapshot_bytes(tmp_path / "dataset", before.id)
    with curating(log, dataset):
        assert replay_ledger(ledger, log) == {PAIR_TOPIC: VOTES, VOTE_TOPIC: VOTES}
        assert log.wait_for(lambda: receipts(log) == 4 * VOTES)
    assert dataset.build_snapshot() == before
    assert snapshot_bytes(tmp_path / "dataset", before.id) == bytes_before
    assert (before.votes, before.prompts) == (VOTES, VOTES)


def test_a_dataset_made_anew_from_a_replay_has_the_same_snapshot(ledger: Ledger, tmp_path: Path) -> None:
    """From the ledger into one dataset, from that one's parts into another: the same bytes."""
    manifests = []
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    with curating(log, Dataset(tmp_path / "one")):
        replay_ledger(ledger, log)
        assert log.wait_for(lambda: receipts(log) == 2 * VOTES)
    other = FakeEventLog()
    other.ensure_topics(TOPICS)
    with curating(other, Dataset(tmp_path / "two")):
        assert replay_dataset(Dataset(tmp_path / "one"), other) == {PAIR_TOPIC: VOTES, VOTE_TOPIC: VOTES}
        assert other.wait_for(lambda: receipts(other) == 2 * VOTES)
    for name in ("one", "two"):
        manifests.append(Dataset(tmp_path / name).build_snapshot())
    assert manifests[0] == manifests[1]
    one, two = (snapshot_bytes(tmp_path / name, manifests[0].id) for name in ("one", "two"))
    assert {name: data for name, data in one.items() if name != "parts.json"} == {
        name: data for name, data in two.items() if name != "parts.json"
    }


def test_a_replay_of_the_dataset_tells_a_reader_whom_to_forget(tmp_path: Path) -> None:
    """The reader has their votes from before, and there is no ledger any more that could tell."""
    source, reader = Dataset(tmp_path / "source"), Dataset(tmp_path / "reader")
    for dataset in (source, reader):
        dataset.append_pairs([pair(n) for n in range(3)])
        dataset.append_votes([vote(n) for n in range(3)])
    source.forget(EVENT)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}')
    import_file(source, file, "preferences", name="rows")
    source.take_back("rows")
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    assert replay_dataset(source, log) == {FORGOTTEN_TOPIC: 1, PAIR_TOPIC: 2, VOTE_TOPIC: 2}
    assert [record.value for record in log.records(FORGOTTEN_TOPIC)] == [EVENT.to_bytes()]
    with curating(log, reader):
        assert log.wait_for(lambda: receipts(log) == 5)
    assert {one.voter for one in Dataset(tmp_path / "reader").votes()} == {"v_0", "v_2"}
    assert reader.covering().vote(vote(1))


def test_who_is_forgotten_while_the_dataset_is_replayed_is_sent_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset of a million votes takes minutes, and what is sent after the topics were erased would stay there."""
    monkeypatch.setattr("feedback.replay.BATCH", 2)
    dataset = Dataset(tmp_path / "dataset")
    dataset.append_votes([vote(n) for n in range(9)])
    log = FakeEventLog()
    real, sent = log.producer, [0]

    def producer() -> EventProducer:
        made = real()
        send = made.send

        def then_forget(records: Sequence[OutgoingRecord]) -> list[EventLogError | None]:
            errors = send(records)
            sent[0] += 1
            if sent[0] == 1:
                Dataset(tmp_path / "dataset").forget(EVENT)
            return errors

        monkeypatch.setattr(made, "send", then_forget)
        return made

    monkeypatch.setattr(log, "producer", producer)
    replay_dataset(dataset, log)
    cast = [VoteCast.from_bytes(record.value or b"") for record in log.records(VOTE_TOPIC)]
    assert sorted(one.vote_id for one in cast) == ["w0", "w1", "w2", "w3", "w5", "w6", "w8"]


def test_a_replay_of_one_topic_sends_that_one(ledger: Ledger) -> None:
    log = FakeEventLog()
    replay_ledger(ledger, log)
    assert replay_ledger(ledger, log, [VOTE_TOPIC]) == {VOTE_TOPIC: VOTES}
    assert len(log.records(PAIR_TOPIC)) == VOTES
    assert len(log.records(VOTE_TOPIC)) == 2 * VOTES


def test_a_replay_sends_the_same_bytes(ledger: Ledger) -> None:
    log = FakeEventLog()
    replay_ledger(ledger, log)
    first = {record.value for record in log.records(VOTE_TOPIC)}
    replay_ledger(ledger, log)
    assert {record.value for record in log.records(VOTE_TOPIC)} == first


def test_a_replay_into_a_dead_broker_says_so_and_loses_nothing(ledger: Ledger) -> None:
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    log.down = True
    with pytest.raises(EventLogUnavailable):
        replay_ledger(ledger, log)
    log.down = False
    assert replay_ledger(ledger, log) == {PAIR_TOPIC: VOTES, VOTE_TOPIC: VOTES}


def test_the_relay_finishes_a_replay_that_was_cut_off_whatever_receipts_are_on_the_topic(
    ledger: Ledger, tmp_path: Path
) -> None:
    """A dataset is lost, and the broker goes away in the middle of the replay; on its topics are the receipts still."""
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    with curating(log, Dataset(tmp_path / "lost")), relaying(ledger, log):
        assert until(lambda: ledger.outbox_stats() == OutboxStats(0, 0, 0.0, 0))
    ledger.replay(LEDGER_TOPICS)  # so far came `hustings replay`
    with curating(log, Dataset(tmp_path / "anew")), relaying(ledger, log):
        assert until(lambda: ledger.outbox_stats() == OutboxStats(0, 0, 0.0, 0))
        assert until(lambda: len([*Dataset(tmp_path / "anew").votes()]) == VOTES)


def test_a_topic_that_the_ledger_does_not_hold_is_named(ledger: Ledger) -> None:
    with pytest.raises(ReplayError, match=r"hustings\.adapters"):
        replay_ledger(ledger, FakeEventLog(), ["hustings.adapters"])


def test_a_replay_tries_parked_events_again(ledger: Ledger) -> None:
    """What the alert on parked events advises: raise the broker's limit, then replay."""
    log = FakeEventLog(max_record_bytes=len(pair(1).to_bytes()) + 500)
    ledger.record_pair(pair(100).model_copy(update={"messages": (Message(role="user", content="x" * 5_000),)}))
    assert replay_ledger(ledger, log) == {PAIR_TOPIC: VOTES, VOTE_TOPIC: VOTES}
    assert [row.event_id for row in ledger.parked()] == ["p100"]
    log.max_record_bytes = 1_000_000
    assert replay_ledger(ledger, log) == {PAIR_TOPIC: VOTES + 1, VOTE_TOPIC: VOTES}
    assert ledger.parked() == []
