"""An export is remembered, so that who forgets a voter hears where copies of them went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from feedback.dataset import Dataset, DatasetError, DatasetFull, exported
from feedback.dataset.snapshots import Snapshot
from feedback.forgetting import forget, take_back
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from tests.feedback.events import pair, vote


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    found = DataPaths(tmp_path / "data")
    found.create()
    dataset = Dataset(found.dataset)
    dataset.append_pairs([pair(1), pair(2)])
    dataset.append_votes([vote(1), vote(2)])
    return found


def export(paths: DataPaths, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["export", *arguments, "--data-dir", str(paths.root)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_forgetting_tells_where_copies_of_them_went(paths: DataPaths, tmp_path: Path) -> None:
    before, late = tmp_path / "votes.jsonl", tmp_path / "later"
    export(paths, str(before), "--format", "jsonl")
    export(paths, str(before), "--format", "jsonl")
    ledger = Ledger.open(paths.ledger_url)
    dataset = Dataset(paths.dataset)
    try:
        report = forget(ledger, dataset, paths.adapters, "v_1")
        assert report.exports == (str(before),)
        export(paths, str(late))
        assert forget(ledger, dataset, paths.adapters, "v_2").exports == (str(before), str(late))
        assert forget(ledger, dataset, paths.adapters, "v_0").exports == ()
    finally:
        ledger.close()


@pytest.mark.parametrize(("name", "arguments"), [("votes.jsonl", ()), ("votes.parquet", ("--format", "hf"))])
def test_a_file_named_for_another_format_is_not_made_a_folder(
    paths: DataPaths, tmp_path: Path, name: str, arguments: tuple[str, ...]
) -> None:
    asked = ["export", str(tmp_path / name), *arguments, "--data-dir", str(paths.root)]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, DatasetError)
    assert f"choose the format {Path(name).suffix[1:]}" in str(done.exception)
    assert not (tmp_path / name).exists()
    assert not (paths.dataset / exported.FILE).exists()


def test_so_does_an_import_taken_back_and_the_lineage_of_a_voter(paths: DataPaths, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) + "\n")
    runner = CliRunner()
    runner.invoke(app, ["import", str(file), "--data-dir", str(paths.root)], catch_exceptions=False)
    export(paths, str(tmp_path / "out"))
    ledger = Ledger.open(paths.ledger_url)
    try:
        assert take_back(ledger, Dataset(paths.dataset), paths.adapters, "rows").exports == (str(tmp_path / "out"),)
    finally:
        ledger.close()
    told = runner.invoke(app, ["lineage", "import_rows", "--json", "--data-dir", str(paths.root)]).output
    assert json.loads(told)["exports"] == [str(tmp_path / "out")]


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path: Path) -> None:
    exported.remember(tmp_path, exported.Exported(snapshot="s1", dest="/a", format="hf"))
    file = tmp_path / exported.FILE
    file.write_bytes(file.read_bytes() + b'{"snapshot": "s1", "de')
    exported.remember(tmp_path, exported.Exported(snapshot="s1", dest="/b", format="hf"))
    assert exported.places_of(tmp_path, ["s1"]) == ("/a", "/b")
    assert exported.places_of(tmp_path, ["s2"]) == ()


def test_what_cannot_be_remembered_for_want_of_room_is_not_exported(paths: DataPaths, tmp_path: Path) -> None:
    dataset = Dataset(paths.dataset)
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    (paths.dataset / exported.FILE).symlink_to("/dev/full")
    with pytest.raises(DatasetFull):
        dataset.export(snapshot, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exporting_reads_no_table_whole(paths: DataPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It streams; counting what it wrote must not bring a million votes into memory."""
    monkeypatch.setattr(Snapshot, "preferences", property(lambda _: pytest.fail("read whole")))
    assert "1 comparisons of snapshot" in export(paths, str(tmp_path / "out"), "--format", "jsonl")
