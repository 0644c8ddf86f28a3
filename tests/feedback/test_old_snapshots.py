"""Old snapshots lose their tables, so that a disk doesn't fill with copies of all votes; what tells of them stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from feedback.dataset import Dataset, DatasetFull, NewData, SnapshotDropped, SnapshotPurged, snapshots
from feedback.dataset.importing import import_file
from tests.feedback.events import pair, vote
from tests.feedback.test_forgetting import EVENT


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "dataset")


def several(dataset: Dataset, count: int) -> list[str]:
    """Snapshots one after the other, each with one vote more, and each a second younger."""
    made = []
    for number in range(count):
        dataset.append_pairs([pair(number)])
        dataset.append_votes([vote(number)])
        made.append(dataset.build_snapshot().id)
        manifest = dataset.root / "snapshots" / made[-1] / snapshots.MANIFEST
        os.utime(manifest, (1_000_000 + number, 1_000_000 + number))
    return made


def whole(dataset: Dataset, ids: list[str]) -> list[bool]:
    return [(dataset.root / "snapshots" / one / "preferences.parquet").exists() for one in ids]


def test_all_but_the_newest_lose_their_tables(dataset: Dataset) -> None:
    made = several(dataset, 5)
    assert dataset.drop_old_tables(newest=2) == [made[2], made[1], made[0]]
    assert whole(dataset, made) == [False, False, False, True, True]
    with pytest.raises(SnapshotDropped, match="keep_snapshots"):
        dataset.load_snapshot(made[0])
    assert dataset.load_snapshot(made[3]).manifest.votes == 4
    assert dataset.drop_old_tables(newest=2) == []


def test_those_in_use_and_the_last_one_stay(dataset: Dataset) -> None:
    made = several(dataset, 4)
    (dataset.root / "snapshots" / "LATEST").write_text(made[1])
    assert dataset.drop_old_tables(newest=1, keep=[made[0]]) == [made[2]]
    assert whole(dataset, made) == [True, True, False, True]


def test_ids_and_counting_go_on(dataset: Dataset) -> None:
    made = several(dataset, 3)
    dataset.drop_old_tables(newest=1)
    assert sorted(dataset.vote_ids(made[1])) == ["w0", "w1"]
    assert dataset.count_new(made[1]) == NewData(decisive=0, ties=1, prompts=1)
    assert set(dataset.snapshots_with("w1")) == set(made[1:])
    assert [one.id for one in dataset.snapshots()] == sorted(made)


def test_forgetting_finds_the_voter_in_them(dataset: Dataset) -> None:
    made = several(dataset, 4)
    dataset.drop_old_tables(newest=1)
    stone = dataset.forget(EVENT)  # voter of number 1
    assert set(stone.snapshots) == set(made[1:])
    with pytest.raises(SnapshotPurged):
        dataset.load_snapshot(made[1])
    with pytest.raises(SnapshotDropped):
        dataset.load_snapshot(made[0])
    assert sorted(dataset.vote_ids(made[1])) == ["w0", "w1"]


def test_where_there_is_no_room_for_the_ids_nothing_goes(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = several(dataset, 2)

    def full(path: Path, data: Any) -> None:
        raise DatasetFull("no room")

    monkeypatch.setattr(snapshots, "write_file", full)
    with pytest.raises(DatasetFull):
        dataset.drop_old_tables(newest=1)
    assert whole(dataset, made) == [True, True]


def test_a_snapshot_of_the_same_rows_has_its_tables_again(dataset: Dataset) -> None:
    made = several(dataset, 2)
    (dataset.root / "snapshots" / "LATEST").write_text(made[0])
    dataset.drop_old_tables(newest=0)
    assert whole(dataset, made) == [True, False]
    assert dataset.build_snapshot().id == made[1]
    assert dataset.load_snapshot(made[1]).manifest.votes == 2
    assert sorted(dataset.vote_ids(made[1])) == ["w0", "w1"]


def test_an_import_taken_back_and_brought_again_can_be_trained_on(tmp_path: Path, dataset: Dataset) -> None:
    """Its rows, and so its snapshot's id, are those of the snapshot that was purged."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) + "\n")
    import_file(dataset, file, "preferences", name="rows")
    first = dataset.build_snapshot()
    dataset.take_back("rows")
    import_file(dataset, file, "preferences", name="rows")
    again = dataset.build_snapshot()
    assert again.id == first.id
    assert dataset.load_snapshot(again.id).preferences.num_rows == 1


def test_one_that_is_given_its_tables_while_its_voter_is_forgotten_loses_them_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = several(dataset, 3)
    (dataset.root / "snapshots" / "LATEST").write_text(made[0])
    dataset.drop_old_tables(newest=0)
    real, first = snapshots._give_back, [True]

    def then_forget(*folders: Path) -> None:
        real(*folders)
        if first.pop() if first else False:
            Dataset(dataset.root).forget(EVENT)

    monkeypatch.setattr(snapshots, "_give_back", then_forget)
    after = dataset.build_snapshot()
    assert (after.votes, after.id in made) == (2, False)
    with pytest.raises(SnapshotPurged):
        dataset.load_snapshot(made[2])
