"""A voter who asks to be forgotten is gone from parts, snapshots and replays, and stays gone."""

from __future__ import annotations

import base64
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import (
    FORGOTTEN_TOPIC,
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    THUMB_TOPIC,
    TOPICS,
    VOTE_TOPIC,
    DeadLetter,
    ThumbGiven,
    VoterForgotten,
)
from feedback.curator import RECORDS, Curator
from feedback.dataset import Dataset, NewData, SnapshotPurged
from feedback.dataset.parts import PartStore, read_rows
from feedback.event_log import OutgoingRecord
from feedback.replay import replay_dataset
from tests.fakes.event_log import FakeEventLog
from tests.feedback.events import START, pair, thumb, vote

VOTER = "v_1"  # numbers 1, 4, 7, ... of tests.feedback.events
EVENT = VoterForgotten(event_id="f1", voter=VOTER, until=START + timedelta(hours=1))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = Dataset(tmp_path)
    for start in (0, 6):
        made.append_votes([vote(n) for n in range(start, start + 6)])
        made.append_pairs([pair(n) for n in range(start, start + 6)])
    return made


def traces(root: Path) -> list[str]:
    """Files that tell anything of the voter's events: question 4 is theirs."""
    stores = [PartStore(root / "votes"), PartStore(root / "pairs")]
    rows = [row for store in stores for row in read_rows(store.paths()) if b"Question 4?" in row.event]
    tables = [path.name for path in root.rglob("*.parquet") if b"Question 4?" in path.read_bytes()]
    return [*(row.id for row in rows), *tables]


def test_a_forgotten_voter_is_in_no_part_and_no_snapshot(dataset: Dataset, tmp_path: Path) -> None:
    before = dataset.build_snapshot()
    assert traces(tmp_path)
    stone = dataset.forget(EVENT)
    assert (stone.votes, stone.pairs, stone.snapshots) == (4, 4, (before.id,))
    assert traces(tmp_path) == []
    after = dataset.build_snapshot()
    assert (after.votes, after.prompts, after.voters) == (8, 8, 2)
    assert {name.as_py() for name in dataset.load_snapshot(after.id).preferences["voter"]} == {"v_0", "v_2"}
    assert [one.vote_id for one in dataset.votes()] == [f"w{n}" for n in range(12) if n % 3 != 1]


def test_the_snapshot_without_them_is_the_one_of_a_dataset_that_never_had_them(
    dataset: Dataset, tmp_path: Path
) -> None:
    dataset.forget(EVENT)
    other = Dataset(tmp_path / "other")
    other.append_votes([vote(n) for n in range(12) if n % 3 != 1])
    other.append_pairs([pair(n) for n in range(12) if n % 3 != 1])
    assert dataset.build_snapshot() == other.build_snapshot()


def test_an_older_snapshot_loses_its_tables_and_keeps_its_ids(dataset: Dataset, tmp_path: Path) -> None:
    before = dataset.build_snapshot()
    dataset.forget(EVENT)
    with pytest.raises(SnapshotPurged, match="build a new one"):
        dataset.load_snapshot(before.id)
    assert set(dataset.vote_ids(before.id)) == {f"w{n}" for n in range(12)}
    assert dataset.snapshots_with("w4") == [before.id]
    assert Dataset(tmp_path).count_new(before.id) == NewData(0, 0, 0)
    assert [manifest.id for manifest in dataset.snapshots()] == [before.id]


def test_a_snapshot_that_never_held_them_stays(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(0)])
    dataset.append_pairs([pair(0)])
    early = dataset.build_snapshot()
    dataset.append_pairs([pair(1)])
    late = dataset.build_snapshot()
    assert dataset.forget(EVENT).snapshots == (late.id,)
    assert dataset.load_snapshot(early.id).preferences.num_rows == 1


def test_their_events_are_never_taken_again_but_those_of_somebody_who_came_back_are(dataset: Dataset) -> None:
    dataset.forget(EVENT)
    assert dataset.append_votes([vote(4), vote(1)]) is None
    assert dataset.append_pairs([pair(4)]) is None
    later = START + timedelta(hours=2)
    back = vote(13).model_copy(update={"pair": pair(13).model_copy(update={"shown_at": later}), "cast_at": later})
    assert dataset.append_votes([back]) is not None
    assert dataset.build_snapshot().votes == 9


def test_forgetting_twice_changes_nothing_more(dataset: Dataset) -> None:
    before = dataset.build_snapshot()
    first = dataset.forget(EVENT)
    dataset.build_snapshot()
    again = dataset.forget(EVENT)
    assert again == first
    assert again.snapshots == (before.id,)
    assert dataset.forgotten() == [first]


def test_what_a_crash_cut_off_is_finished_by_the_next(dataset: Dataset, tmp_path: Path) -> None:
    """The tombstone was written, and nothing taken away yet: later snapshots already are without them."""
    before = dataset.build_snapshot()
    dataset._tombstones.keep(dataset.forgotten()[0] if dataset.forgotten() else _stone(before.id))
    assert Dataset(tmp_path).build_snapshot().votes == 8
    stone = Dataset(tmp_path).forget(EVENT)
    assert before.id in stone.snapshots
    assert traces(tmp_path) == []


def _stone(snapshot: str):
    from feedback.dataset import ForgottenVoter

    return ForgottenVoter(event=EVENT, snapshots=(snapshot,))


def test_the_curator_obeys_a_tombstone_and_what_comes_after_it(tmp_path: Path) -> None:
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    dataset = Dataset(tmp_path)
    stop = threading.Event()
    thread = threading.Thread(target=Curator(log, dataset, FeedbackConfig(curate_linger_s=0.0)).run, args=(stop,))
    thread.start()

    def send(*records: tuple[str, bytes]) -> None:
        log.producer().send([OutgoingRecord(topic, "k", value) for topic, value in records])

    try:
        send((PAIR_TOPIC, pair(1).to_bytes()), (VOTE_TOPIC, vote(1).to_bytes()), (VOTE_TOPIC, vote(2).to_bytes()))
        assert log.wait_for(lambda: b"w2" in b"".join(r.value or b"" for r in log.records(RECEIPT_TOPIC)), 10)
        send((FORGOTTEN_TOPIC, EVENT.to_bytes()))
        assert log.wait_for(lambda: b"f1" in b"".join(r.value or b"" for r in log.records(RECEIPT_TOPIC)), 10)
        send((VOTE_TOPIC, vote(4).to_bytes()))
        assert log.wait_for(lambda: b"w4" in b"".join(r.value or b"" for r in log.records(RECEIPT_TOPIC)), 10)
    finally:
        stop.set()
        thread.join(20)
    assert [one.vote_id for one in Dataset(tmp_path).votes()] == ["w2"]
    assert list(Dataset(tmp_path).pairs()) == []


def test_a_tombstone_of_another_time_zone_means_the_same_moment() -> None:
    assert EVENT.covers(VOTER, datetime(2026, 11, 21, 13, 0, tzinfo=UTC))
    assert not EVENT.covers(VOTER, datetime(2026, 11, 21, 13, 0, 1, tzinfo=UTC))
    assert not EVENT.covers("v_2", START)


def test_a_trainer_that_runs_on_does_not_count_forgotten_votes_as_new(dataset: Dataset, tmp_path: Path) -> None:
    """Else each snapshot without them would seem to lack them, and cycle would follow cycle."""
    trainer = Dataset(tmp_path)
    assert trainer.count_new(None).decisive == 6
    dataset.forget(EVENT)
    assert trainer.count_new(None) == NewData(decisive=4, ties=4, prompts=8)
    assert trainer.count_new(trainer.build_snapshot().id) == NewData(0, 0, 0)


@pytest.mark.parametrize("voter", ["../../outside", "a/b", "\u00fc" * 256, ".hidden", "v\x00"])
def test_a_tombstone_of_an_odd_name_stays_in_its_folder_and_holds_nobody_up(tmp_path: Path, voter: str) -> None:
    dataset = Dataset(tmp_path / "data" / "dataset")
    named = pair(1).model_copy(update={"voter": voter})
    dataset.append_pairs([named, pair(2)])
    dataset.forget(VoterForgotten(event_id="f1", voter=voter, until=START + timedelta(days=1)))
    assert [stone.event.voter for stone in Dataset(tmp_path / "data" / "dataset").forgotten()] == [voter]
    assert list(dataset.pairs()) == [pair(2)]
    outside = [path for path in tmp_path.rglob("*.json") if path.parent.name != "forgotten"]
    assert outside == []


def test_their_thumbs_go_from_parts_and_replays_and_are_never_taken_again(dataset: Dataset, tmp_path: Path) -> None:
    dataset.append_thumbs([thumb(n) for n in range(6)])
    dataset.forget(EVENT)
    kept = ["t0", "t2", "t3", "t5"]
    assert [row.id for row in read_rows(PartStore(tmp_path / "thumbs").paths())] == kept
    assert dataset.append_thumbs([thumb(4)]) is None
    log = FakeEventLog()
    assert replay_dataset(dataset, log)[THUMB_TOPIC] == len(kept)
    assert sorted(ThumbGiven.from_bytes(r.value or b"").thumb_id for r in log.records(THUMB_TOPIC)) == kept
    assert not any(b"Question 4?" in (r.value or b"") for topic in TOPICS for r in log.records(topic))


def test_a_thumb_that_comes_after_the_tombstone_is_receipted_and_not_stored(tmp_path: Path) -> None:
    log = FakeEventLog()
    log.ensure_topics(TOPICS)
    dataset = Dataset(tmp_path)
    dataset.forget(EVENT)
    before = RECORDS.labels(THUMB_TOPIC, "stored")._value.get()
    stop = threading.Event()
    thread = threading.Thread(target=Curator(log, dataset, FeedbackConfig(curate_linger_s=0.0)).run, args=(stop,))
    thread.start()
    try:
        log.producer().send([OutgoingRecord(THUMB_TOPIC, "k", thumb(n).to_bytes()) for n in (4, 2)])
        assert log.wait_for(lambda: b"t4" in b"".join(r.value or b"" for r in log.records(RECEIPT_TOPIC)), 10)
    finally:
        stop.set()
        thread.join(20)
    assert [one.thumb_id for one in Dataset(tmp_path).thumbs()] == ["t2"]
    assert RECORDS.labels(THUMB_TOPIC, "stored")._value.get() == before + 1


def test_dead_letters_that_name_them_go_too(dataset: Dataset, tmp_path: Path) -> None:
    def letter(value: bytes) -> DeadLetter:
        encoded = base64.b64encode(value).decode()
        return DeadLetter(topic=VOTE_TOPIC, partition=0, offset=1, key=None, value=encoded, error="of a newer schema")

    theirs = dataset.keep_dead_letter(letter(vote(4).to_bytes().replace(b'"schema_version":1', b'"schema_version":9')))
    others = dataset.keep_dead_letter(letter(b"no JSON at all"))
    dataset.forget(EVENT)
    assert (theirs.exists(), others.exists()) == (False, True)
