"""A disk that is really full (a small tmpfs): what was there stays whole, and everything goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedback.contracts import DeadLetter, VoterForgotten, utc_now
from feedback.dataset import Dataset, DatasetFull
from feedback.ledger import Ledger, LedgerUnavailable
from tests.feedback.events import pair, vote

pytestmark = pytest.mark.slow
DISK_BYTES = 4 << 20
LETTER = DeadLetter(topic="t", partition=0, offset=1, key=None, value="", error="e")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here ({made.stderr.strip()}); the imitations of a full disk ran")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all room that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return filler


def test_the_ledger_refuses_votes_while_the_disk_is_full_and_takes_them_after(disk: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{disk / 'ledger.sqlite3'}")
    for number in range(8):
        ledger.record_pair(pair(number))
    filler = fill(disk)
    with pytest.raises(LedgerUnavailable, match="full"):
        for number in range(8):
            ledger.record_vote(pair_id=f"p{number}", voter=pair(number).voter, choice="a", edited="x" * 50_000)
    before = ledger.counts()
    assert before.pairs + before.votes == len(ledger.pending(1_000))
    filler.unlink()
    for number in range(8):
        ledger.record_vote(pair_id=f"p{number}", voter=pair(number).voter, choice="a", edited="x" * 50_000)
    assert (ledger.counts().votes, len(ledger.pending(1_000))) == (8, 16)
    ledger.close()


def test_a_file_system_that_turned_read_only_is_told_of_as_such(disk: Path) -> None:
    """As Linux makes of one whose disk fails: whoever writes must hear it as trouble to wait for, not as a defect."""
    dataset = Dataset(disk / "dataset")
    for number in range(4):
        dataset.append_votes([vote(number)])
        dataset.build_snapshot()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    attempts: list[Callable[[], object]] = [
        lambda: dataset.append_votes([vote(9)]),
        dataset.build_snapshot,
        lambda: dataset.drop_old_tables(1),
        lambda: dataset.forget(VoterForgotten(event_id="f1", voter=vote(1).voter, until=utc_now())),
        lambda: Dataset(disk / "dataset").append_pairs([pair(9)]),
        lambda: dataset.keep_dead_letter(LETTER),
    ]
    for attempt in attempts:
        with pytest.raises(DatasetFull, match="Read-only file system"):
            attempt()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    dataset.append_votes([vote(9)])
    assert dataset.build_snapshot().votes == 5


def test_the_dataset_stores_nothing_by_halves_on_a_full_disk(disk: Path) -> None:
    dataset = Dataset(disk / "dataset")
    first = [vote(number) for number in range(50)]
    dataset.append_votes(first)
    dataset.append_pairs([one.pair for one in first])
    there = {path.name for path in disk.rglob("*") if path.is_file()}
    filler = fill(disk)
    more = [vote(number) for number in range(50, 150)]
    with pytest.raises(DatasetFull, match="no space left"):
        dataset.append_votes(more)
    with pytest.raises(DatasetFull, match="no space left"):
        dataset.build_snapshot()
    filler.unlink()
    assert {path.name for path in disk.rglob("*") if path.is_file()} == there
    dataset.append_votes(more)
    dataset.append_votes(more)
    assert dataset.build_snapshot().votes == 150
