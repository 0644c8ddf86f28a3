"""The curator on the fake event log."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from feedback.config import FeedbackConfig
from feedback.contracts import (
    DEAD_LETTER_TOPIC,
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    THUMB_TOPIC,
    TOPICS,
    VOTE_TOPIC,
    DeadLetter,
    RecordsCurated,
    VoterForgotten,
)
from feedback.curator import RECEIPT_IDS, Curator, CuratorError, _metrics_server, receipts
from feedback.dataset import Dataset, DatasetFull, NewData
from feedback.event_log import OutgoingRecord
from tests.fakes.event_log import FakeEventLog
from tests.feedback.events import pair, thumb, vote

CONFIG = FeedbackConfig(curate_linger_s=0.0)


@pytest.fixture
def log() -> FakeEventLog:
    made = FakeEventLog()
    made.ensure_topics(TOPICS)
    return made


@contextmanager
def curating(
    log: FakeEventLog, dataset: Dataset, config: FeedbackConfig = CONFIG, at: Callable[[str], None] = lambda step: None
) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Curator(log, dataset, config, at=at).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def send(log: FakeEventLog, *records: tuple[str, bytes | None]) -> None:
    log.producer().send([OutgoingRecord(topic, "k", value) for topic, value in records])


def receipted(log: FakeEventLog) -> list[str]:
    receipts = [RecordsCurated.from_bytes(record.value or b"") for record in log.records(RECEIPT_TOPIC)]
    return [event_id for receipt in receipts for event_id in receipt.event_ids]


def committed(log: FakeEventLog) -> int:
    return sum(log._committed.values())


def test_valid_events_are_stored_receipted_and_committed(log: FakeEventLog, tmp_path: Path) -> None:
    send(log, (PAIR_TOPIC, pair(1).to_bytes()), (VOTE_TOPIC, vote(1).to_bytes()))
    with curating(log, Dataset(tmp_path)):
        assert log.wait_for(lambda: set(receipted(log)) == {"p1", "w1"})
    assert committed(log) == 2
    dataset = Dataset(tmp_path)
    assert list(dataset.pairs()) == [pair(1)]
    assert list(dataset.votes()) == [vote(1)]


def test_a_repeated_event_is_receipted_again_and_stored_once(log: FakeEventLog, tmp_path: Path) -> None:
    with curating(log, Dataset(tmp_path)):
        send(log, (VOTE_TOPIC, vote(1).to_bytes()))
        assert log.wait_for(lambda: receipted(log) == ["w1"])
        send(log, (VOTE_TOPIC, vote(1).to_bytes()))
        assert log.wait_for(lambda: receipted(log) == ["w1", "w1"])
    assert Dataset(tmp_path).build_snapshot().votes == 1


@pytest.mark.parametrize(
    ("value", "words", "known_as"),
    [
        (b"no json {", "Invalid JSON", None),
        (b"\xff\xfe", "JSON", None),
        (b"[]", "VoteCast", None),
        (vote(9).to_bytes().replace(b'"schema_version":1', b'"schema_version":9'), "schema_version isn't known", "w9"),
        (vote(9).to_bytes().replace(b'"position":"b"', b'"position":"a"'), "a and b are needed", "w9"),
        (vote(9).to_bytes().replace(b'"choice":"b"', b'"choice":"maybe"'), "choice", "w9"),
    ],
)
def test_what_cannot_be_read_goes_whole_to_the_dead_letters(
    log: FakeEventLog, tmp_path: Path, value: bytes, words: str, known_as: str | None
) -> None:
    """And the good vote behind it is not held up."""
    send(log, (VOTE_TOPIC, value), (VOTE_TOPIC, vote(1).to_bytes()))
    expected = [known_as, "w1"] if known_as else ["w1"]
    with curating(log, Dataset(tmp_path)):
        assert log.wait_for(lambda: receipted(log) == expected)
    letters = [DeadLetter.from_bytes(record.value or b"") for record in log.records(DEAD_LETTER_TOPIC)]
    assert len(letters) == 1
    assert base64.b64decode(letters[0].value or "") == value
    assert (letters[0].topic, letters[0].offset) == (VOTE_TOPIC, 0)
    assert words in letters[0].error
    kept = [DeadLetter.from_bytes(path.read_bytes()) for path in (tmp_path / "dead-letters").glob("*.json")]
    assert kept == letters
    assert list(Dataset(tmp_path).votes()) == [vote(1)]


def test_a_dead_letter_too_large_for_its_topic_is_kept_on_the_disk(log: FakeEventLog, tmp_path: Path) -> None:
    value = b"x" * 900_000
    send(log, (VOTE_TOPIC, value), (VOTE_TOPIC, vote(1).to_bytes()))
    with curating(log, Dataset(tmp_path)):
        assert log.wait_for(lambda: receipted(log) == ["w1"])
    letter = DeadLetter.from_bytes(log.records(DEAD_LETTER_TOPIC)[0].value or b"")
    assert letter.value is None
    assert "dead-letters folder" in letter.error
    kept = DeadLetter.from_bytes(next((tmp_path / "dead-letters").iterdir()).read_bytes())
    assert base64.b64decode(kept.value or "") == value


def test_a_wreck_with_an_endless_id_holds_nobody_up(log: FakeEventLog, tmp_path: Path) -> None:
    """A receipt that names it would be refused as too large, again and again."""
    wrecks = [b'{"vote_id":"' + letter * 600_000 + b'"}' for letter in (b"x", b"y")]
    send(log, *((VOTE_TOPIC, wreck) for wreck in wrecks), (VOTE_TOPIC, vote(1).to_bytes()))
    with curating(log, Dataset(tmp_path)):
        assert log.wait_for(lambda: receipted(log) == ["w1"])
    assert len(list((tmp_path / "dead-letters").iterdir())) == 2


def test_a_tombstone_is_passed_over(log: FakeEventLog, tmp_path: Path) -> None:
    send(log, (VOTE_TOPIC, None), (VOTE_TOPIC, vote(1).to_bytes()))
    with curating(log, Dataset(tmp_path)):
        assert log.wait_for(lambda: receipted(log) == ["w1"])
    assert log.records(DEAD_LETTER_TOPIC) == []


def test_a_full_disk_gives_no_receipt_and_is_waited_out(
    log: FakeEventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset(tmp_path)
    append, again = dataset.append_votes, threading.Event()
    connected: list[float] = []

    def full(events: object) -> None:
        connected.append(REGISTRY.get_sample_value("hustings_curator_connected") or 0.0)
        if len(connected) == 2:
            again.set()
        raise DatasetFull("no space left")

    monkeypatch.setattr(dataset, "append_votes", full)
    send(log, (VOTE_TOPIC, vote(1).to_bytes()))
    with curating(log, dataset):
        assert again.wait(5)
        assert connected[1] == 0, "what was read well before the disk is asked again tells nothing of the disk"
        assert receipted(log) == []
        assert committed(log) == 0
        monkeypatch.setattr(dataset, "append_votes", append)
        assert log.wait_for(lambda: receipted(log) == ["w1"], 10)


def test_a_broker_that_forgets_is_worked_on_again(log: FakeEventLog, tmp_path: Path) -> None:
    with curating(log, Dataset(tmp_path)):
        send(log, (VOTE_TOPIC, vote(1).to_bytes()))
        assert log.wait_for(lambda: receipted(log) == ["w1"])
        log.down = True
        log.forget()
        log.down = False
        log.ensure_topics(TOPICS)
        send(log, (VOTE_TOPIC, vote(1).to_bytes()), (VOTE_TOPIC, vote(2).to_bytes()))
        assert log.wait_for(lambda: set(receipted(log)) == {"w1", "w2"}, 10)
    assert Dataset(tmp_path).build_snapshot().votes == 2


def test_receipts_name_each_event_once_and_stay_small() -> None:
    sent = receipts([f"w{n}" for n in range(RECEIPT_IDS + 1)] * 2)
    named = [RecordsCurated.from_bytes(record.value or b"").event_ids for record in sent]
    assert [len(ids) for ids in named] == [RECEIPT_IDS, 1]
    assert sorted(event_id for ids in named for event_id in ids) == sorted(f"w{n}" for n in range(RECEIPT_IDS + 1))


def test_a_metrics_port_in_use_is_told() -> None:
    from feedback.broker import free_port

    port = free_port()
    with _metrics_server(port), pytest.raises(CuratorError, match="curator_metrics_port"), _metrics_server(port):
        pass


def test_thumbs_are_stored_once_and_receipted_and_train_nothing(log: FakeEventLog, tmp_path: Path) -> None:
    send(log, *[(THUMB_TOPIC, thumb(number).to_bytes()) for number in (1, 2, 1)])
    with curating(log, Dataset(tmp_path)):
        assert log.wait_for(lambda: set(receipted(log)) == {"t1", "t2"})
    dataset = Dataset(tmp_path)
    assert list(dataset.thumbs()) == [thumb(1), thumb(2)]
    assert dataset.count_new(None) == NewData(decisive=0, ties=0, prompts=0)
    dataset.forget(VoterForgotten(event_id="f1", voter=thumb(1).voter, until=thumb(2).given_at))
    assert list(dataset.thumbs()) == [thumb(2)]
    assert not any(b"Question 1?" in path.read_bytes() for path in (tmp_path / "thumbs").rglob("*.parquet"))


def test_a_batch_of_large_records_is_not_waited_to_be_fuller(log: FakeEventLog, tmp_path: Path) -> None:
    """Five hundred records of megabytes each would fill the memory."""
    large = [vote(n).model_copy(update={"edited": "x" * 90_000}) for n in range(12)]
    send(log, *((VOTE_TOPIC, one.to_bytes()) for one in large))
    sizes: list[int] = []
    curator = Curator(log, Dataset(tmp_path), FeedbackConfig(curate_linger_s=60.0))
    stop = threading.Event()
    whole = log.consumer

    def few_at_a_time(*arguments: Any) -> Any:
        consumer = whole(*arguments)
        poll = consumer.poll
        consumer.poll = lambda timeout_s, most=500: poll(timeout_s, min(most, 4))
        return consumer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feedback.curator.BATCH_BYTES", 500_000)
        patch.setattr(log, "consumer", few_at_a_time)
        patch.setattr(curator, "_curate", lambda records, *_: (sizes.append(len(records)), stop.set()))
        thread = threading.Thread(target=curator.run, args=(stop,))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    assert sizes == [8], "two polls of four: 720 kB"
