"""What finished cycles keep of people's words, taken out when somebody in their votes was forgotten.

A cycle's report quotes prompts, its checkpoints come from votes on them. Neither is needed once the cycle has ended.
Prepared pairs ask its prompts of other people: they go, and the next cycle prepares others.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import structlog
from pydantic import ValidationError

from feedback.contracts import ReviewPool
from feedback.dataset import Dataset
from feedback.paths import DataPaths
from train.cycle_state import all_cycles, checkpoint_folders, cycles_folder
from train.files import write_text
from train.report import without_samples
from train.status import StatusBoard

EVERY_S = 60.0
"""Seconds between looks."""

log = structlog.get_logger()


class Forgetting:
    """Looks for forgotten voters, once a minute at most, and at once when made.

    Args:
        paths: the data folder.
        dataset: knows who was forgotten, and which snapshots held them.
        status: the board that shows the last cycle's answers.
    """

    def __init__(self, paths: DataPaths, dataset: Dataset, status: StatusBoard) -> None:
        self._paths, self._dataset, self._status = paths, dataset, status
        self._looked = -EVERY_S
        self._done: set[int] = set()

    def look(self) -> None:
        """Take the words out of cycles that ended and whose snapshot held somebody who has been forgotten since.

        What can't be written now is tried again at the next look.
        """
        if time.monotonic() - self._looked < EVERY_S:
            return
        self._looked = time.monotonic()
        gone = {snapshot for voter in self._dataset.forgotten() for snapshot in voter.snapshots}
        for state in all_cycles(self._paths):
            if state.outcome is None or state.number in self._done or state.snapshot not in gone:
                continue
            try:
                _take_out(cycles_folder(self._paths) / f"{state.number:06d}")
                _take_prepared_away(self._paths.review_pool, state.reward_model)
            except OSError as error:
                log.error("words_not_taken_out", cycle=state.number, reason=str(error), next="again in a minute")
                continue
            if self._status.status.get("cycle") == state.number:
                self._status.update(samples=[], force=True)
            self._done.add(state.number)
            log.info("words_taken_out", cycle=state.number, reason="somebody in its votes was forgotten")


def _take_out(folder: Path) -> None:
    report = folder / "report.html"
    if report.is_file():
        text = report.read_text()
        if (left := without_samples(text)) != text:
            write_text(report, left)
    for checkpoints in checkpoint_folders(folder):
        if checkpoints.exists():
            shutil.rmtree(checkpoints)


def _take_prepared_away(pool: Path, reward_model: str | None) -> None:
    """Remove the prepared pairs that this reward model chose from its snapshot's prompts."""
    try:
        prepared = ReviewPool.model_validate_json(pool.read_bytes())
    except FileNotFoundError:
        return
    except ValidationError:
        return  # nobody shows what can't be read
    if prepared.reward_model == reward_model:
        pool.unlink()
        log.info("prepared_pairs_removed", reason="somebody whose questions may be among them was forgotten")
