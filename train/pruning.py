"""What old cycles leave on the disk, and what of it goes: their reports, metrics and reward models stay."""

from __future__ import annotations

import shutil

import structlog

from feedback.dataset import Dataset, DatasetError
from feedback.paths import DataPaths
from train.cycle_state import all_cycles, checkpoint_folders, cycles_folder
from train.reward.config import ScheduleConfig

log = structlog.get_logger(__name__)


def prune(paths: DataPaths, dataset: Dataset, schedule: ScheduleConfig) -> None:
    """Drop the checkpoints of old cycles, and the tables of old snapshots: each is a copy of all votes."""
    cycles = all_cycles(paths)
    ended = [state for state in cycles if state.outcome is not None]
    for state in ended[: -schedule.keep_cycles]:
        for folder in checkpoint_folders(cycles_folder(paths) / f"{state.number:06d}"):
            shutil.rmtree(folder, ignore_errors=True)
    open_ones = [state.snapshot for state in cycles if state.outcome is None and state.snapshot is not None]
    last = [state.snapshot for state in ended[-1:] if state.snapshot is not None]
    try:
        dropped = dataset.drop_old_tables(schedule.keep_snapshots, [*open_ones, *last])
    except DatasetError as error:
        log.warning("old_snapshots_stay", reason=str(error))
        return
    if dropped:
        log.info("tables_of_old_snapshots_dropped", snapshots=len(dropped))
