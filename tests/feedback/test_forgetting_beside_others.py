"""Forgetting while others build snapshots, merge parts, forget too, or crash; and what comes back afterwards."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import (
    DEAD_LETTER_TOPIC,
    FORGOTTEN_TOPIC,
    RECEIPT_TOPIC,
    TOPICS,
    VOTE_TOPIC,
    DeadLetter,
    VoterForgotten,
)
from feedback.curator import Curator
from feedback.dataset import Dataset, DatasetFull, SnapshotPurged, forgetting, parts, snapshots
from feedback.dataset.importing import import_file
from feedback.event_log import OutgoingRecord
from tests.fakes.event_log import FakeEventLog
from tests.feedback.events import START, pair, vote
from tests.feedback.test_forgetting import EVENT, VOTER

NEWER = b'"schema_version":9'


def of(voter: str) -> VoterForgotten:
    return VoterForgotten(event_id=f"f_{voter}", voter=voter, until=START + timedelta(hours=1))


def holding(root: Path, words: bytes = b"Question 1?") -> list[str]:
    """Files below the dataset that hold the words."""
    return sorted(path.name for path in root.rglob("*") if path.is_file() and words in path.read_bytes())


def letters_on(log: FakeEventLog) -> list[bytes]:
    return [record.value or b"" for record in log.records(DEAD_LETTER_TOPIC)]


def stored(folder: Path) -> list[str]:
    """Ids in the parts of a folder."""
    return [row.id for row in parts.read_rows(sorted(folder.glob("*.parquet")))]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = Dataset(tmp_path)
    made.append_pairs([pair(1), pair(2)])
    made.append_votes([vote(1), vote(2)])
    return made


def cut_off(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do the work until its first purge, where the disk is full."""

    def full(folder: Path) -> None:
        raise DatasetFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "purge", full)
        with pytest.raises(DatasetFull):
            work()


def test_a_snapshot_that_a_crash_kept_from_being_purged_is_purged_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a prompt of theirs and no vote: when the parts are without them, only the tombstone knows."""
    dataset = Dataset(tmp_path)
    dataset.append_pairs([pair(1), pair(2)])
    dataset.append_votes([vote(2)])
    before = dataset.build_snapshot()
    cut_off(monkeypatch, lambda: dataset.forget(EVENT))
    Dataset(tmp_path).forget(EVENT)
    with pytest.raises(SnapshotPurged):
        dataset.load_snapshot(before.id)


def test_so_is_that_of_an_import_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) + "\n")
    dataset = Dataset(tmp_path / "dataset")
    import_file(dataset, file, "preferences", name="rows")
    before = dataset.build_snapshot()
    cut_off(monkeypatch, lambda: dataset.take_back("rows"))
    Dataset(tmp_path / "dataset").take_back("rows")
    with pytest.raises(SnapshotPurged):
        dataset.load_snapshot(before.id)


@pytest.mark.parametrize("step", ["_write_prompts", "_describe"])
def test_who_is_forgotten_while_a_snapshot_is_built_is_not_in_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real, first = getattr(snapshots, step), [True]

    def then_forget(*args: Any, **named: Any) -> Any:
        out = real(*args, **named)
        if first.pop() if first else False:
            Dataset(tmp_path).forget(EVENT)
        return out

    monkeypatch.setattr(snapshots, step, then_forget)
    made = dataset.build_snapshot()
    assert (made.votes, made.prompts) == (1, 1)
    assert holding(tmp_path) == []
    assert [one.id for one in dataset.snapshots()] == [made.id]


def test_a_snapshot_that_comes_just_before_the_tombstone_is_found(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Dataset(tmp_path)
    real, made = other._tombstones.keep, []

    def keep(stone: Any) -> Any:
        if not made:
            made.append(dataset.build_snapshot().id)
        return real(stone)

    monkeypatch.setattr(other._tombstones, "keep", keep)
    assert other.forget(EVENT).snapshots == tuple(made)
    assert holding(tmp_path) == []


def test_a_merge_does_not_bring_back_what_was_taken_out_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge has read the old parts when another process wants to forget: that one waits for it."""
    monkeypatch.setattr(parts, "MERGE_AT", 2)
    dataset = Dataset(tmp_path)
    for number in (1, 2):
        dataset.append_votes([vote(number)])
    forgets = threading.Thread(target=lambda: Dataset(tmp_path).forget(EVENT))
    real = parts.PartStore._replace

    def after_forgetting(store: parts.PartStore, paths: Any, tables: Any) -> Any:
        read = list(tables)
        if not forgets.ident:
            forgets.start()
            forgets.join(0.3)
        return real(store, paths, read)

    monkeypatch.setattr(parts.PartStore, "_replace", after_forgetting)
    dataset.merge_parts()
    forgets.join(10)
    assert not forgets.is_alive()
    assert stored(tmp_path / "votes") == ["w2"]


def test_two_who_forget_the_same_voter_count_their_votes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving forgets, and the curator by the tombstone a moment later."""
    dataset = Dataset(tmp_path)
    dataset.append_pairs([pair(1)])
    dataset.append_votes([vote(1)])
    both = threading.Barrier(2, timeout=1.0)
    real = forgetting._Search.look

    def look(search: forgetting._Search) -> Any:
        found = real(search)
        if not both.broken:
            with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for its turn
                both.wait()
        return found

    monkeypatch.setattr(forgetting._Search, "look", look)
    threads = [threading.Thread(target=lambda: Dataset(tmp_path).forget(EVENT)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    (stone,) = dataset.forgotten()
    assert (stone.votes, stone.pairs) == (1, 1)


def test_a_snapshot_purged_for_one_voter_still_tells_that_it_held_another(dataset: Dataset) -> None:
    """Whoever was trained on it was trained on both."""
    before = dataset.build_snapshot()
    dataset.forget(of("v_2"))
    assert dataset.forget(EVENT).snapshots == (before.id,)


def test_many_tombstones_cost_one_look_through_the_parts(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A replay sends them all: a look each would keep the curator from its broker until it is thought dead."""
    looked: list[str] = []
    real = forgetting.read_rows

    def counted(paths: Any) -> Any:
        looked.extend(str(path) for path in paths)
        return real(paths)

    monkeypatch.setattr(forgetting, "read_rows", counted)
    stones = dataset.forget_all([of(f"v_{number}") for number in (1, 2, 7, 8, 9)])
    assert [stone.event.voter for stone in stones] == ["v_1", "v_2", "v_7", "v_8", "v_9"]
    assert [stone.votes for stone in stones] == [1, 1, 0, 0, 0]
    assert len(looked) == 2  # the votes' part and the pairs'
    assert list(dataset.votes()) == []


def test_of_two_tombstones_of_one_voter_the_later_time_counts(dataset: Dataset) -> None:
    early = EVENT.model_copy(update={"event_id": "f0", "until": START})
    (stone,) = dataset.forget_all([EVENT, early])
    assert stone.event == EVENT
    assert [one.vote_id for one in dataset.votes()] == ["w2"]


@pytest.mark.parametrize("voter", ['a"b', "v\x00", "a\\b"])
def test_a_name_that_is_written_with_escapes_is_found_in_the_parts(tmp_path: Path, voter: str) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_pairs([pair(1).model_copy(update={"voter": voter}), pair(2)])
    assert dataset.forget(of(voter)).pairs == 1
    assert stored(tmp_path / "pairs") == ["p2"]


def test_a_dead_letter_of_theirs_does_not_come_back_with_its_record(tmp_path: Path) -> None:
    """The event log still holds it, and a group that lost its place reads it again."""
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    back = vote(4).model_copy(update={"cast_at": START + timedelta(hours=2)})
    wrecks = [one.to_bytes().replace(b'"schema_version":1', NEWER, 1) for one in (vote(1), vote(2), back)]
    records = [(FORGOTTEN_TOPIC, EVENT.to_bytes()), *((VOTE_TOPIC, wreck) for wreck in wrecks)]
    stop = threading.Event()
    curator = Curator(log, Dataset(tmp_path), FeedbackConfig(curate_linger_s=0.0))
    thread = threading.Thread(target=curator.run, args=(stop,))
    thread.start()
    try:
        for (topic, value), name in zip(records, (b"f1", b"w1", b"w2", b"w4"), strict=True):
            log.producer().send([OutgoingRecord(topic, "k", value)])
            assert log.wait_for(lambda n=name: n in b"".join(r.value or b"" for r in log.records(RECEIPT_TOPIC)), 10)  # type: ignore[misc]
    finally:
        stop.set()
        thread.join(20)
    letters = [DeadLetter.from_bytes(path.read_bytes()) for path in (tmp_path / "dead-letters").glob("*.json")]
    kept = {json.loads(base64.b64decode(letter.value or ""))["vote_id"] for letter in letters}
    assert kept == {"w2", "w4"}


def test_a_dead_letter_of_theirs_that_is_read_with_the_tombstone_is_not_kept(tmp_path: Path) -> None:
    """As after an outage, when both wait: the letters were written after the voter's had been taken out."""
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    wrecks = [one.to_bytes().replace(b'"schema_version":1', NEWER, 1) for one in (vote(1), vote(2))]
    log.producer().send([OutgoingRecord(VOTE_TOPIC, "k", wreck) for wreck in wrecks])
    log.producer().send([OutgoingRecord(FORGOTTEN_TOPIC, "k", EVENT.to_bytes())])
    stop = threading.Event()
    curator = Curator(log, Dataset(tmp_path), FeedbackConfig(curate_linger_s=0.0))
    thread = threading.Thread(target=curator.run, args=(stop,))
    thread.start()
    try:
        assert log.wait_for(lambda: b"w2" in b"".join(r.value or b"" for r in log.records(RECEIPT_TOPIC)), 10)
    finally:
        stop.set()
        thread.join(20)
    for raw in (*(path.read_bytes() for path in (tmp_path / "dead-letters").glob("*.json")), *letters_on(log)):
        assert json.loads(base64.b64decode(DeadLetter.from_bytes(raw).value or ""))["vote_id"] == "w2"


def test_a_file_of_somebody_else_among_the_dead_letters_holds_nobody_up(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "dead-letters"
    folder.mkdir()
    (folder / "notes.json").write_text('{"looked at": "by me"}')
    (folder / "theirs.json").write_text(f'{{"voter":"{VOTER}"}}')
    dataset.forget(EVENT)
    assert [path.name for path in folder.iterdir()] == ["notes.json"]


def test_a_snapshot_purged_by_another_process_in_this_moment_is_no_trouble(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dataset.build_snapshot()
    folder = dataset.root / "snapshots" / before.id
    ids = list(dataset.vote_ids(before.id))
    real, first = snapshots.is_purged, [False]
    snapshots.purge(folder)
    monkeypatch.setattr(snapshots, "is_purged", lambda folder: first.pop() if first else real(folder))
    assert list(dataset.vote_ids(before.id)) == ids


@pytest.mark.parametrize("kind", ["votes", "pairs"])
def test_what_a_curator_stores_in_the_moment_of_forgetting_goes_too(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It looked at the tombstones before there was one, and its part comes when the parts have been looked through."""
    real, first = parts.PartStore.append, [True]

    def forget_first(store: parts.PartStore, rows: Any) -> Path | None:
        if first and first.pop():
            Dataset(tmp_path).forget(EVENT)
        return real(store, rows)

    monkeypatch.setattr(parts.PartStore, "append", forget_first)
    if kind == "votes":
        dataset.append_votes([vote(4), vote(5)])
    else:
        dataset.append_pairs([pair(4), pair(5)])
    assert sorted(stored(tmp_path / "votes")) == (["w2", "w5"] if kind == "votes" else ["w2"])
    assert sorted(stored(tmp_path / "pairs")) == (["p2"] if kind == "votes" else ["p2", "p5"])
    assert len(dataset.unerased()) == 1


def test_a_tombstone_that_was_written_twice_within_one_tick_of_the_clock_is_read_anew(
    dataset: Dataset, tmp_path: Path
) -> None:
    """A file system's clock may tick every four milliseconds."""
    other = Dataset(tmp_path)
    dataset.forget(EVENT)
    stone = tmp_path / "forgotten" / f"{VOTER}.json"
    first = stone.stat()
    assert other.forgotten()[0].event.until == EVENT.until
    later = EVENT.model_copy(update={"until": START + timedelta(days=1)})
    dataset.forget(later)
    os.utime(stone, ns=(first.st_atime_ns, first.st_mtime_ns))
    assert other.forgotten()[0].event.until == later.until
