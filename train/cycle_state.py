"""What a cycle has done so far: `state.json`, rewritten after every step."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from feedback.contracts import utc_now
from feedback.paths import DataPaths
from train.config import TrainConfig, with_resources_of
from train.files import write_json

Outcome = Literal["published", "refused", "failed"]
HISTORY = 200
"""Cycles that the Loop page is told of: the status is written twice a second while one runs."""


class CycleState(BaseModel):
    """One cycle.

    Attributes:
        number: from 1.
        config: the trainer's, as it was when the cycle began; a resumed cycle keeps all but memory and place.
        snapshot: the dataset's, once frozen.
        reward_model: id, once judged fit.
        parent: adapter that PPO went on from.
        warm_start: figures of the phase on people's edited answers; None where there was none.
        adapter: name reserved for the result.
        outcome: None while it runs.
        reason: why it was refused or failed.
        refused_by: the reward model's test that refused it (`RewardRefused.test`); None for all other ends.
        metrics: figures of the published adapter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    config: dict[str, Any]
    snapshot: str | None = None
    reward_model: str | None = None
    parent: str | None = None
    warm_start: dict[str, float] | None = None
    adapter: str | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    refused_by: str | None = None
    metrics: dict[str, float] = {}
    started_at: str = ""
    finished_at: str | None = None

    def finished(self) -> Self:
        """With the time of its end."""
        return self.model_copy(update={"finished_at": datetime.now(UTC).isoformat()})


def save_state(root: Path, state: CycleState) -> None:
    """Write `<root>/<number>/state.json` atomically."""
    started = state.started_at or utc_now().isoformat()
    write_json(
        root / f"{state.number:06d}" / "state.json", state.model_copy(update={"started_at": started}).model_dump()
    )


def load_state(folder: Path) -> CycleState:
    """Read `<folder>/state.json`."""
    return CycleState.model_validate(json.loads((folder / "state.json").read_text()))


def cycles_folder(paths: DataPaths) -> Path:
    """Where all cycles lie."""
    return paths.train / "cycles"


def checkpoint_folders(cycle: Path) -> tuple[Path, ...]:
    """Where a cycle's checkpoints lie: of PPO, and of the warm start before it."""
    return cycle / "ppo", cycle / "sft"


def open_cycle(paths: DataPaths, config: TrainConfig) -> CycleState:
    """The unfinished cycle if there is one, else a new one.

    One that has no snapshot yet has done nothing, and takes today's configuration. One whose configuration this version
    does not understand (an upgrade came between) has failed.
    """
    states = all_cycles(paths)
    for at, state in enumerate(states):
        if state.outcome is not None:
            continue
        if state.snapshot is None:
            return state.model_copy(update={"config": config.model_dump(mode="json")})
        try:
            kept = with_resources_of(TrainConfig.model_validate(state.config), config).model_dump(mode="json")
        except ValidationError as error:
            odd = ".".join(map(str, error.errors()[0]["loc"]))
            reason = f"it began with settings that this version does not understand (train.{odd})"
            states[at] = state.model_copy(update={"outcome": "failed", "reason": reason}).finished()
            save_state(cycles_folder(paths), states[at])
            continue
        return state.model_copy(update={"config": kept})
    state = CycleState(number=max((s.number for s in states), default=0) + 1, config=config.model_dump(mode="json"))
    save_state(cycles_folder(paths), state)
    return state


def all_cycles(paths: DataPaths) -> list[CycleState]:
    """Every cycle, oldest first."""
    return [load_state(folder) for folder in _folders(paths)]


def last_cycle(paths: DataPaths) -> CycleState | None:
    """The newest cycle. It alone is read: a trainer that waits asks every few seconds, after thousands of cycles."""
    folders = _folders(paths)
    return load_state(folders[-1]) if folders else None


def history(paths: DataPaths) -> list[dict[str, Any]]:
    """The newest cycles that have ended, oldest first, as the Loop page shows them."""
    ended = [state for state in map(load_state, _folders(paths)[-HISTORY:]) if state.outcome is not None]
    return [
        {
            "cycle": state.number,
            "adapter": state.adapter,
            "outcome": state.outcome,
            "reason": state.reason,
            "reward": state.metrics.get("reward"),
            "kl": state.metrics.get("policy_kl"),
            "win_rate": state.metrics.get("reward_win_rate"),
            "finished_at": state.finished_at,
            "report": (cycles_folder(paths) / f"{state.number:06d}" / "report.html").is_file(),
        }
        for state in ended
    ]


def _folders(paths: DataPaths) -> list[Path]:
    return sorted(path.parent for path in cycles_folder(paths).glob("*/state.json"))
