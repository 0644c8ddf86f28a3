"""What old cycles leave on the disk does not grow for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedback.dataset import Dataset, DatasetFull
from feedback.paths import DataPaths
from tests.feedback.test_old_snapshots import several, whole
from train.cycle_state import CycleState, cycles_folder, save_state
from train.pruning import prune
from train.reward.config import ScheduleConfig


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    found = DataPaths(tmp_path)
    found.create()
    return found


def cycle(paths: DataPaths, number: int, snapshot: str, *, ended: bool = True) -> Path:
    state = CycleState(number=number, config={}, snapshot=snapshot)
    save_state(cycles_folder(paths), state.model_copy(update={"outcome": "refused"}) if ended else state)
    folder = cycles_folder(paths) / f"{number:06d}"
    (folder / "ppo").mkdir(parents=True)
    (folder / "sft").mkdir()
    (folder / "report.html").write_text("kept")
    return folder


def test_old_checkpoints_and_old_snapshots_go_and_what_is_in_use_stays(paths: DataPaths) -> None:
    dataset = Dataset(paths.dataset)
    made = several(dataset, 6)
    cycle(paths, 1, made[0], ended=False)
    folders = [cycle(paths, number, made[number - 1]) for number in (2, 3, 4)]
    prune(paths, dataset, ScheduleConfig(keep_cycles=2, keep_snapshots=1))
    assert [(folder / "ppo").exists() for folder in folders] == [False, True, True]
    assert [(folder / "sft").exists() for folder in folders] == [False, True, True]
    assert all((folder / "report.html").exists() for folder in folders)
    # the open cycle's, the last cycle's, and the newest
    assert whole(dataset, made) == [True, False, False, True, False, True]


def test_a_full_disk_does_not_end_the_trainer(paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(paths.dataset)

    def full(*_: object) -> list[str]:
        raise DatasetFull("no room")

    monkeypatch.setattr(dataset, "drop_old_tables", full)
    prune(paths, dataset, ScheduleConfig())
