"""Many parts and more events than are sorted at once: the same snapshots, in few files, whoever else is at work."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback.dataset import Dataset, snapshots
from feedback.dataset.files import folder_in_the_making
from feedback.dataset.ids import IdIndex
from feedback.dataset.ordering import in_order, once_each
from feedback.dataset.parts import MERGE_AT, PartGone, PartRow, PartStore, read_rows
from tests.feedback.events import pair, vote


def row(number: int, at_us: int | None = None, event: bytes = b"event") -> PartRow:
    return PartRow(f"w{number:04d}", "a", number if at_us is None else at_us, event)


def stored(store: PartStore) -> list[PartRow]:
    return sorted(read_rows(store.paths()), key=lambda one: one.id)


def test_events_sorted_in_buckets_come_as_those_sorted_at_once(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "votes")
    numbers = list(range(300))
    random.Random(5).shuffle(numbers)
    for start in range(0, 300, 20):
        store.append([row(n, at_us=n // 3, event=b"x" * 200) for n in numbers[start : start + 20]])
    (tmp_path / "scratch").mkdir()
    sorted_out = list(in_order(store.paths(), tmp_path / "scratch", bucket_bytes=4_000))
    assert [(one.at_us, one.id) for one in sorted_out] == [(n // 3, f"w{n:04d}") for n in range(300)]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_repeats_in_different_parts_meet_in_one_bucket(tmp_path: Path) -> None:
    """Two curators stored the same events, and one id with two contents at two times."""
    one, other = PartStore(tmp_path / "one"), PartStore(tmp_path / "other")
    one.append([row(n, event=b"x" * 200) for n in range(100)])
    other.append([row(n, event=b"x" * 200) for n in range(50, 150)])
    other.append([row(3, at_us=149, event=b"a smaller one")])
    for path in other.paths():
        (tmp_path / "one" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "scratch").mkdir()
    found = list(in_order(one.paths(), tmp_path / "scratch", bucket_bytes=4_000))
    assert [event.id for event in found] == [f"w{n:04d}" for n in range(150)]
    assert found[3].event == b"a smaller one"
    assert found == once_each(read_rows(one.paths()))


def test_a_snapshot_built_in_buckets_has_the_same_bytes(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for start in range(0, 60, 7):
        dataset.append_votes([vote(n) for n in range(start, min(60, start + 7))])
        dataset.append_pairs([pair(n) for n in range(start, min(60, start + 7))])
    manifest = dataset.build_snapshot()
    (tmp_path / "again").mkdir()
    again = snapshots.build(dataset._votes, dataset._pairs, tmp_path / "again", bucket_bytes=2_000)
    assert again == manifest
    for name in (*snapshots.TABLES, "manifest.json"):
        one, two = (tmp_path / root / manifest.id / name for root in ("snapshots", "again"))
        assert one.read_bytes() == two.read_bytes()


def test_small_parts_are_merged_and_hold_what_they_held(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for n in range(MERGE_AT + 3):
        dataset.append_votes([vote(n)])
    before = dataset.build_snapshot()
    assert dataset.merge_parts() == MERGE_AT
    assert len(list((tmp_path / "votes").iterdir())) == 4
    assert dataset.build_snapshot() == before
    assert dataset.append_votes([vote(n) for n in range(MERGE_AT + 3)]) is None
    assert Dataset(tmp_path).append_votes([vote(0)]) is None
    assert dataset.merge_parts() == 0


def test_few_files_however_slowly_votes_trickle_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = PartStore(tmp_path)
    for n in range(200):
        store.append([row(n)])
        store.merge()
        assert len(store.paths()) < 3 * MERGE_AT
    assert [one.id for one in stored(store)] == [f"w{n:04d}" for n in range(200)]


def test_what_a_crash_between_merging_and_removing_left_is_read_once(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for n in range(MERGE_AT):
        dataset.append_votes([vote(n)])
    small = {path.name: path.read_bytes() for path in (tmp_path / "votes").iterdir()}
    before = dataset.build_snapshot()
    dataset.merge_parts()
    for name, data in small.items():
        (tmp_path / "votes" / name).write_bytes(data)
    assert Dataset(tmp_path).build_snapshot() == before
    assert Dataset(tmp_path).merge_parts() > 0
    assert Dataset(tmp_path).build_snapshot() == before


def test_parts_merged_under_a_snapshot_in_the_making_make_it_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, curator = Dataset(tmp_path), Dataset(tmp_path)
    for n in range(MERGE_AT):
        curator.append_votes([vote(n)])
    listed, paths = [], dataset._votes.paths

    def list_and_lose() -> list[Path]:
        listed.append(paths())
        if len(listed) == 1:
            curator.merge_parts()
        return listed[-1]

    monkeypatch.setattr(dataset._votes, "paths", list_and_lose)
    assert dataset.build_snapshot().votes == MERGE_AT
    assert [len(names) for names in listed] == [MERGE_AT, 1]
    assert len(list(dataset.votes())) == MERGE_AT


def test_a_part_that_is_gone_is_no_corrupt_one(tmp_path: Path) -> None:
    with pytest.raises(PartGone):
        list(read_rows([tmp_path / "gone.parquet"]))


def test_two_builders_that_meet_both_succeed(tmp_path: Path) -> None:
    with folder_in_the_making(tmp_path) as (one, publish_one), folder_in_the_making(tmp_path) as (two, publish_two):
        for folder in (one, two):
            (folder / "table").write_text("the same")
        publish_one("abc")
        assert publish_two("abc") == tmp_path / "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_the_index_counts_news_as_it_grows() -> None:
    index = IdIndex()
    index.add([("w1", "a"), ("w2", "tie")])
    index.set_old(["w1", "w9"])
    index.add([("w1", "a"), ("w3", "a"), ("w3", "b"), ("w9", "b")])
    assert dict(index.news()) == {"tie": 1, "a": 1}
    assert (len(index), "w3" in index, index.unknown(["w2", "w4"])) == (4, True, {"w4"})


def test_what_a_part_held_that_was_taken_away_is_taken_again(tmp_path: Path) -> None:
    """A damaged part is moved away and its votes are replayed, to a curator that has run all the while."""
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1), vote(2)])
    damaged = dataset.append_votes([vote(3)])
    assert damaged is not None
    damaged.rename(tmp_path / "damaged")
    assert dataset.unknown_votes(["w1", "w2", "w3"]) == {"w3"}
    assert dataset.append_votes([vote(1), vote(2), vote(3)]) is not None
    assert [one.vote_id for one in dataset.votes()] == ["w1", "w2", "w3"]


def test_parts_that_another_process_merged_are_not_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that counts a million votes each two seconds can't read their ids at every merge of the curator's."""
    curator, trainer = PartStore(tmp_path / "votes"), PartStore(tmp_path / "votes")
    for number in range(MERGE_AT):
        curator.append([row(number)])
    trainer.ids()
    assert curator.merge() == MERGE_AT
    read: list[str] = []
    real = PartStore._read_ids

    def seen(store: PartStore, path: Path) -> tuple[int, int]:
        read.append(path.name)
        return real(store, path)

    monkeypatch.setattr(PartStore, "_read_ids", seen)
    assert len(trainer.ids()) == len(curator.ids()) == MERGE_AT
    assert read == [path.name for path in trainer.paths()]  # the trainer read the merged one; who merged it nothing


def test_a_listing_that_missed_a_merge_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part before the merge was gone when its piece of the folder was read, and the one after not yet there."""
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    real, torn = Path.glob, [True]

    def glob(folder: Path, pattern: str) -> Iterator[Path]:
        found = list(real(folder, pattern))
        return iter([] if folder.name == "votes" and torn and torn.pop() else found)

    monkeypatch.setattr(Path, "glob", glob)
    assert dataset.build_snapshot().votes == 1
