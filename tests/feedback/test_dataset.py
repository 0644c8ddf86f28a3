from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedback.contracts import VoterForgotten, utc_now
from feedback.dataset import Dataset, DatasetCorrupt, DatasetError, DatasetFull, NewData, UnknownSnapshot
from feedback.dataset.rows import PROMPT_SCHEMA, VOTE_SCHEMA
from tests.feedback.events import pair, vote


def ids(table: pa.Table) -> list[str]:
    return table["vote_id"].to_pylist()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_row_says_what_was_voted(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    row = dataset.load_snapshot(dataset.build_snapshot().id).preferences.to_pylist()[0]
    assert row["prompt"] == [{"role": "user", "content": "Question 1?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Right 1"}]
    assert row["rejected"] == [{"role": "assistant", "content": "Left 1"}]
    assert (row["chosen_position"], row["outcome"]) == ("b", "decisive")
    assert (row["chosen_adapter"], row["rejected_adapter"]) == ("policy-000001", None)
    assert (row["chosen_token_ids"], row["chosen_logprobs"]) == ([1, 2, 3], [-1.0, -2.0, -0.125])
    assert (row["rejected_token_ids"], row["prompt_token_ids"]) == ([1, 1], [7, 8, 1])
    assert (row["chosen_finish_reason"], row["rejected_finish_reason"]) == ("length", "stop")
    assert (row["temperature"], row["top_p"], row["propensity"]) == (0.7, 0.9, 0.25)
    assert (row["margin"], row["weight"], row["reasons"]) == (None, 1.0, [])
    assert row["cast_at"] == vote(1).cast_at


def test_winners_and_ties_go_to_their_tables(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(n) for n in range(8)])
    dataset.append_pairs([pair(n) for n in range(9)])
    manifest = dataset.build_snapshot()
    snapshot = dataset.load_snapshot(manifest.id)
    assert ids(snapshot.preferences) == ["w0", "w1", "w4", "w5"]
    assert ids(snapshot.ties) == ["w2", "w3", "w6", "w7"]
    assert snapshot.ties["outcome"].to_pylist() == ["tie", "both_bad", "tie", "both_bad"]
    assert snapshot.ties["chosen_position"].to_pylist() == ["a"] * 4
    assert snapshot.prompts["pair_id"].to_pylist() == [f"p{n}" for n in range(9)]
    assert (manifest.votes, manifest.decisive, manifest.ties, manifest.both_bad, manifest.prompts) == (8, 4, 2, 2, 9)
    assert (manifest.voters, manifest.conversations) == (3, 6)
    assert manifest.adapters == {"base": 8, "policy-000001": 8}
    assert (manifest.from_time, manifest.to_time) == (vote(0).cast_at, vote(7).cast_at)
    assert len(snapshot.parts) == 2


def test_an_event_is_stored_once_however_often_it_comes(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    assert dataset.append_votes([vote(1), vote(1), vote(2)]) is not None
    assert dataset.append_votes([vote(2), vote(1)]) is None
    assert Dataset(tmp_path).append_votes([vote(1)]) is None
    assert len(list((tmp_path / "votes").iterdir())) == 1


def test_what_two_curators_stored_twice_counts_once(tmp_path: Path) -> None:
    """Both looked before either wrote: the parts overlap."""
    one, other = Dataset(tmp_path / "one"), Dataset(tmp_path / "other")
    one.append_votes([vote(1), vote(2)])
    part = other.append_votes([vote(2), vote(3)])
    assert part is not None
    (tmp_path / "one" / "votes" / part.name).write_bytes(part.read_bytes())
    snapshot = one.load_snapshot(one.build_snapshot().id)
    assert sorted(ids(snapshot.preferences) + ids(snapshot.ties)) == ["w1", "w2", "w3"]


def test_equal_votes_give_equal_bytes_whatever_the_way_they_came(tmp_path: Path) -> None:
    one, other = Dataset(tmp_path / "one"), Dataset(tmp_path / "other")
    one.append_votes([vote(n) for n in range(20)])
    one.append_pairs([pair(n) for n in range(20)])
    for n in reversed(range(20)):
        other.append_pairs([pair(n)])
        other.append_votes([vote(n), vote(19)])
    first, second = one.build_snapshot(), other.build_snapshot()
    assert first == second
    for name in ("preferences.parquet", "ties.parquet", "prompts.parquet", "manifest.json"):
        folders = [tmp_path / which / "snapshots" / first.id / name for which in ("one", "other")]
        assert folders[0].read_bytes() == folders[1].read_bytes()


def test_building_again_writes_nothing(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    manifest = dataset.build_snapshot()
    before = files(tmp_path)
    assert dataset.build_snapshot() == manifest
    assert files(tmp_path) == before


def test_the_latest_snapshot_is_the_one_built_last(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    assert dataset.latest_snapshot() is None
    dataset.append_votes([vote(1)])
    dataset.build_snapshot()
    dataset.append_votes([vote(2)])
    newer = dataset.build_snapshot()
    assert Dataset(tmp_path).latest_snapshot() == newer


def test_new_data_is_what_the_snapshot_lacks(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    assert dataset.count_new(None) == NewData(0, 0, 0)
    dataset.append_votes([vote(n) for n in range(4)])
    dataset.append_pairs([pair(n) for n in range(6)])
    assert dataset.count_new(None) == NewData(decisive=2, ties=2, prompts=6)
    manifest = dataset.build_snapshot()
    assert dataset.count_new(manifest.id) == NewData(0, 0, 0)
    writer = Dataset(tmp_path)
    writer.append_votes([vote(4), vote(5), vote(6)])
    writer.append_pairs([pair(6)])
    assert dataset.count_new(manifest.id) == NewData(decisive=2, ties=1, prompts=1)


def test_votes_on_planted_pairs_are_nothing_new_to_learn_from(tmp_path: Path) -> None:
    """They judge their voters, and the trainer leaves them out; a snapshot tells of them as of any."""
    dataset = Dataset(tmp_path)
    planted = vote(0).model_copy(update={"pair": pair(0).model_copy(update={"contenders": "gold", "gold": "a"})})
    dataset.append_votes([planted, vote(1), vote(2)])
    assert dataset.count_new(None) == NewData(decisive=1, ties=2, prompts=0)
    manifest = dataset.build_snapshot()
    assert (manifest.votes, manifest.decisive, manifest.ties, manifest.both_bad) == (3, 2, 1, 0)
    dataset.merge_parts()
    assert Dataset(tmp_path).count_new(None).decisive == 1


def test_an_empty_snapshot_has_its_columns(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    assert snapshot.preferences.schema.equals(VOTE_SCHEMA)
    assert snapshot.ties.schema.equals(VOTE_SCHEMA)
    assert snapshot.prompts.schema.equals(PROMPT_SCHEMA)
    assert snapshot.preferences.num_rows == 0


def test_what_a_crash_left_half_written_is_not_read_and_is_cleared_when_old(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    old, young = tmp_path / "votes" / ".writing-dead", tmp_path / "votes" / ".writing-alive"
    old.write_bytes(b"half a pa")
    young.write_bytes(b"half a pa")
    os.utime(old, (0, 0))
    half_snapshot = tmp_path / "snapshots" / ".writing-dead"
    half_snapshot.mkdir()
    (half_snapshot / "preferences.parquet").write_bytes(b"PAR1")
    for path in (half_snapshot / "preferences.parquet", half_snapshot):
        os.utime(path, (0, 0))
    reopened = Dataset(tmp_path)
    assert reopened.build_snapshot().votes == 1
    assert not old.exists()
    assert young.exists()
    assert not half_snapshot.exists()


def test_a_snapshot_that_has_been_built_for_hours_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """Its folder is as old as its beginning; what is written goes into a folder within."""
    scratch = tmp_path / "snapshots" / ".writing-large" / "scratch"
    scratch.mkdir(parents=True)
    bucket = scratch / "0001.arrow"
    bucket.write_bytes(b"rows")
    for path in (scratch, scratch.parent):
        os.utime(path, (0, 0))
    Dataset(tmp_path)
    assert bucket.exists()
    os.utime(bucket, (0, 0))
    Dataset(tmp_path)
    assert not scratch.parent.exists()


def test_a_changed_part_is_refused_by_name(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    part = dataset.append_votes([vote(1)])
    assert part is not None
    data = bytearray(part.read_bytes())
    data[40] ^= 1
    part.write_bytes(data)
    with pytest.raises(DatasetCorrupt, match=rf"{part.name}.*hustings replay"):
        dataset.build_snapshot()
    part.write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetCorrupt, match=part.name):
        Dataset(tmp_path).count_new(None)


def test_a_changed_snapshot_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    manifest = dataset.build_snapshot()
    with (tmp_path / "snapshots" / manifest.id / "ties.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DatasetCorrupt, match=r"ties\.parquet"):
        dataset.load_snapshot(manifest.id)


@pytest.mark.parametrize("name", ["0123", "../../etc", ""])
def test_an_unknown_snapshot_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownSnapshot):
        Dataset(tmp_path).load_snapshot(name)
    with pytest.raises(UnknownSnapshot):
        Dataset(tmp_path).count_new(name)


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "can't be written")])
def test_a_full_or_read_only_disk_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    before = files(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DatasetFull, match=words):
            dataset.append_votes([vote(2)])
        with pytest.raises(DatasetFull, match=words):
            dataset.build_snapshot()
    assert files(tmp_path) == before
    assert dataset.append_votes([vote(2)]) is not None


def test_a_disk_on_which_nothing_can_be_removed_either_is_told_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that its errors made read-only: cleaning up fails too, and must not hide what happened."""
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir"):
            patch.setattr(Path, name, refuse)
            patch.setattr(os, name, refuse)
        patch.setattr(os, "fsync", refuse)
        for attempt in (
            lambda: dataset.append_votes([vote(2)]),
            dataset.build_snapshot,
            lambda: dataset.forget(VoterForgotten(event_id="f1", voter="v_1", until=utc_now())),
        ):
            with pytest.raises(DatasetFull, match="can't be written"):
                attempt()
    assert dataset.append_votes([vote(2)]) is not None


def test_no_room_for_temporary_files_is_told_and_the_ids_are_read_anew(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    index = dataset._votes.ids()
    # SQLite's own limit on pages fails just as a full disk does.
    index._db.execute("PRAGMA max_page_count=4")
    many = [vote(n).model_copy(update={"vote_id": f"w{n}" + "x" * 50}) for n in range(2, 400)]
    with pytest.raises(DatasetFull, match="free some space there"):
        dataset.append_votes(many)
    assert dataset.append_votes([*many, vote(1)]) is None, "they were stored before the index failed"
    assert dataset.count_new(None).decisive + dataset.count_new(None).ties == 399
    assert dataset.build_snapshot().votes == 399


def test_parquet_export_is_the_tables(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "data")
    dataset.append_votes([vote(n) for n in range(4)])
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    dataset.export(snapshot, tmp_path / "out", "parquet")
    assert pq.read_table(tmp_path / "out" / "preferences.parquet").equals(snapshot.preferences)
    assert pq.read_table(tmp_path / "out" / "ties.parquet").equals(snapshot.ties)
    dataset.export(snapshot, tmp_path / "one.parquet", "parquet")
    assert pq.read_table(tmp_path / "one.parquet").equals(snapshot.preferences)


def test_json_lines_export_has_a_row_a_line(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "data")
    dataset.append_votes([vote(n) for n in range(6)])
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    dataset.export(snapshot, tmp_path / "votes.jsonl", "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert [row["vote_id"] for row in rows] == ["w0", "w1", "w4", "w5"]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Left 0"}]
    assert rows[0]["margin"] is None


def test_hf_export_names_its_tables_in_the_card(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "data")
    dataset.append_votes([vote(n) for n in range(4)])
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    dataset.export(snapshot, tmp_path / "hf", "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n- config_name: preferences\n  default: true\n")
    table = pq.read_table(tmp_path / "hf" / "preferences" / "train-00000-of-00001.parquet")
    assert table.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert table["margin"].to_pylist() == [0.0, 0.0]
    assert table["vote_id"].equals(snapshot.preferences["vote_id"])


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "data")
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    with pytest.raises(DatasetError, match="parquet, jsonl or hf"):
        dataset.export(snapshot, tmp_path / "out", "csv")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_who_may_only_read_reads_beside_what_a_crash_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1)])
    made = dataset.build_snapshot()
    left = tmp_path / "snapshots" / ".writing-0011"
    left.mkdir()
    os.utime(left, (1, 1))

    def refuse(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert Dataset(tmp_path).load_snapshot(made.id).rows("preferences") == 1


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(DatasetFull, match="give this user the right"):
        Dataset(tmp_path)
