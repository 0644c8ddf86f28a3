"""What is damaged keeps nobody from the rest, and is named: manifests of adapters, snapshots and their tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from feedback.contracts import AdapterManifest, ReleaseState
from feedback.dataset import Dataset, DatasetCorrupt, SnapshotPurged, snapshots
from feedback.forgetting import forget
from feedback.lineage import AdapterLine, UnknownId
from feedback.manifests import Manifests
from tests.feedback.events import pair, vote
from tests.feedback.test_lineage import Site, publish
from tests.feedback.test_manifests import move

VOTER = pair(1).voter
BROKEN = "policy-000002"
WHOLE = {"policy-000001", "policy-000003"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.ledger.close()


def _in_its_place(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_text('{"name": "policy-000002"'), "EOF while parsing"),
    (lambda path: path.write_bytes(b""), "EOF while parsing"),
    (lambda path: path.write_bytes(b"\xff\xfe{}"), "Invalid JSON"),
    (_newer, "schema_version isn't known here; upgrade"),
    (lambda path: path.unlink(), "No such file"),
    (lambda path: _in_its_place(path, Path.mkdir), "no plain file"),
    (lambda path: _in_its_place(path, os.mkfifo), "no plain file"),
    (lambda path: _in_its_place(path, lambda gone: gone.symlink_to(gone)), "symbolic links"),
]


@pytest.mark.parametrize(("spoil", "why"), SPOILT)
def test_an_unreadable_manifest_is_named_and_the_rest_told(
    site: Site, spoil: Callable[[Path], object], why: str
) -> None:
    cast = site.vote(1)
    snapshot = site.dataset.build_snapshot().id
    for number in (1, 2, 3):
        publish(site.adapters, number, snapshot, parent=BROKEN if number == 3 else None)
    spoil(site.adapters / BROKEN / "manifest.json")
    told = site.lineage().told(cast)
    assert set(told["adapters"]) == WHOLE
    assert set(told["unreadable"]) == {BROKEN}
    assert why in told["unreadable"][BROKEN]
    with pytest.raises(UnknownId, match=f"{BROKEN} can't be told of"):
        site.lineage().trace(BROKEN)
    child = site.lineage().told("policy-000003")
    assert (child["ancestors"], set(child["unreadable"])) == ((), {BROKEN})
    report = forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert set(report.adapters) == WHOLE
    assert set(report.unreadable) == {BROKEN}


def test_a_manifest_that_nobody_may_read_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, who runs the tests in a container, may read all, the file itself refuses."""
    for number in (1, 2, 3):
        publish(site.adapters, number, "s-1")
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.parent.name == BROKEN:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = Manifests(site.ledger, site.adapters)()
    assert set(found.readable) == WHOLE
    assert "manifest.json: Permission denied" in found.unreadable[BROKEN]


def test_what_the_ledger_has_stands_in_for_a_damaged_file(site: Site) -> None:
    publish(site.adapters, 2, "s-2")
    path = site.adapters / BROKEN / "manifest.json"
    move(site.ledger, BROKEN, ReleaseState.VERIFIED, AdapterManifest.model_validate_json(path.read_bytes()))
    path.write_text("{")
    line = site.lineage().trace(BROKEN)
    assert isinstance(line, AdapterLine)
    assert line.snapshot == "s-2"
    assert site.lineage().told(BROKEN)["unreadable"] == {}


def test_who_watches_hears_of_each_change_once_and_of_its_end(site: Site) -> None:
    heard: list[Mapping[str, str]] = []
    for number in (1, 2):
        publish(site.adapters, number, "s-1")
    kept = Manifests(site.ledger, site.adapters, watch=heard.append)
    path = site.adapters / BROKEN / "manifest.json"
    whole = path.read_text()
    kept()
    assert heard == []
    path.write_text("{")
    for _ in range(2):
        assert set(kept().readable) == {"policy-000001"}
    path.write_text(whole)
    for _ in range(2):
        assert set(kept().readable) == {"policy-000001", BROKEN}
    assert [set(faults) for faults in heard] == [{BROKEN}, set()]


def test_a_folder_of_adapters_that_cannot_be_listed_is_no_empty_one(site: Site) -> None:
    """That nobody was trained on a voter is a promise: it isn't made where nothing could be looked at."""
    site.vote(1)
    site.adapters.write_text("a file in its place")
    report = forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert "Not a directory" in report.unreadable["the adapters' folder"]


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_a_snapshot_whose_manifest_is_damaged_is_named_and_the_rest_told(
    site: Site, spoil: Callable[[Path], object]
) -> None:
    first_vote = site.vote(0)
    first = site.dataset.build_snapshot().id
    site.vote(1)
    second = site.dataset.build_snapshot().id
    publish(site.adapters, 1, first)
    publish(site.adapters, 2, second)
    spoil(site.dataset.root / "snapshots" / first / "manifest.json")
    told = site.lineage().told(first_vote)
    assert set(told["snapshots"]) == {first, second}
    assert set(told["unreadable"]) == {first}
    assert site.lineage().told("policy-000001")["votes"] is None
    assert [manifest.id for manifest in site.dataset.snapshots()] == [second]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("manifest.json", lambda path: path.write_text("{")),
        ("parts.json", lambda path: path.write_text("[")),
        ("parts.json", lambda path: path.unlink()),
        ("ties.parquet", lambda path: path.unlink()),
    ],
)
def test_who_loads_a_damaged_snapshot_hears_which_folder_to_remove(
    site: Site, file: str, damage: Callable[[Path], object]
) -> None:
    """As `hustings export` does, and the trainer."""
    site.vote(1)
    made = site.dataset.build_snapshot().id
    damage(site.dataset.root / "snapshots" / made / file)
    with pytest.raises(DatasetCorrupt, match=f"{made}.* can't be read .*remove the snapshot's folder"):
        site.dataset.load_snapshot(made)


def test_a_snapshot_that_is_purged_while_it_is_loaded_is_purged_and_not_damaged(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.vote(1)
    made = site.dataset.build_snapshot().id
    real = snapshots.sha256_of

    def sha256_of(path: Path) -> str:
        forget(site.ledger, Dataset(site.dataset.root), site.adapters, VOTER)
        return real(path)

    monkeypatch.setattr(snapshots, "sha256_of", sha256_of)
    with pytest.raises(SnapshotPurged, match="asked to be forgotten"):
        site.dataset.load_snapshot(made)


@pytest.mark.parametrize("name", ["forgotten/v_1.json", "exports.jsonl"])
def test_what_says_whom_to_keep_out_or_where_copies_went_is_not_passed_over(site: Site, name: str) -> None:
    site.vote(1)
    (site.dataset.root / name).mkdir(parents=True)
    with pytest.raises(DatasetCorrupt, match=f"{name}.* can't be read"):
        forget(site.ledger, site.dataset, site.adapters, VOTER)


def test_a_damaged_snapshot_delays_nobodys_forgetting_and_is_named(site: Site) -> None:
    site.vote(0)
    site.vote(1)
    damaged = site.dataset.build_snapshot().id
    site.vote(2)
    whole = site.dataset.build_snapshot().id
    folder = site.dataset.root / "snapshots" / damaged
    (folder / "preferences.parquet").write_bytes(b"PAR1 and nothing more")
    told = site.lineage().told("p1")
    assert set(told["unreadable"]) == {damaged}
    with pytest.raises(DatasetCorrupt, match=rf"{damaged} can't be read .*remove the snapshot's folder"):
        forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert [vote.voter for vote in site.dataset.votes()] == [pair(0).voter, pair(2).voter]
    assert (site.dataset.root / "snapshots" / whole / "purged.parquet").is_file()
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
    report = forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert report.snapshots == (whole,)


def test_a_snapshot_without_its_manifest_loses_a_forgotten_voter_too(site: Site) -> None:
    site.vote(1)
    folder = site.dataset.root / "snapshots" / site.dataset.build_snapshot().id
    (folder / "manifest.json").unlink()
    forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert not [path.name for path in folder.iterdir() if b"Question 1?" in path.read_bytes()]
    assert (folder / "purged.parquet").is_file()


def test_old_tables_are_dropped_beside_a_snapshot_without_its_manifest(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    made = []
    for number in range(3):
        dataset.append_votes([vote(number)])
        made.append(dataset.build_snapshot().id)
    (tmp_path / "snapshots" / made[0] / "manifest.json").unlink()
    assert dataset.drop_old_tables(1) == [made[1]]
