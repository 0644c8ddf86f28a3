"""What the trainer is doing, for the Loop page, for Prometheus and for a terminal.

`DataPaths.train/status.json` has the keys of the Loop page's `training` object (serve/web/README.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from train.files import write_json

log = structlog.get_logger()

PHASES = {"snapshot": 0.0, "features": 0.02, "reward": 0.1, "sft": 0.14, "ppo": 0.15, "evaluate": 0.9, "publish": 0.98}
"""Share of a cycle's time that lies before each phase, as measured on two cores."""
_MIN_INTERVAL_S = 0.5


class StatusBoard:
    """The trainer's status, written atomically; small changes at most twice a second."""

    def __init__(self, path: Path, on_change: Callable[[dict[str, Any]], None] = lambda _status: None) -> None:
        self._path = path
        self._on_change = on_change
        self._started = 0.0
        self._written = 0.0
        self._mute = False
        self._status: dict[str, Any] = {"phase": "idle", "progress": 0.0, "message": "", "cycles": [], "samples": []}

    @property
    def status(self) -> dict[str, Any]:
        """The status now."""
        return dict(self._status)

    def begin(self, cycle: int) -> None:
        """A cycle starts (or goes on). What not every cycle comes to, it has none of until it has its own."""
        self._started = time.monotonic()
        self.update(
            cycle=cycle,
            phase="snapshot",
            progress=0.0,
            step=None,
            steps=None,
            samples=[],
            figures=None,
            reward_model=None,
            sft_loss=None,
            win_rate=None,
            force=True,
        )

    def phase(self, name: str, share: float = 0.0, **more: Any) -> None:
        """A phase is `share` (0 to 1) done."""
        starts = [*PHASES.values(), 1.0]
        at = list(PHASES).index(name)
        progress = starts[at] + (starts[at + 1] - starts[at]) * min(max(share, 0.0), 1.0)
        elapsed = time.monotonic() - self._started
        eta = elapsed / progress * (1 - progress) if progress > 0.05 else None
        changed = name != self._status.get("phase")
        self.update(phase=name, progress=round(progress, 4), eta_s=eta and round(eta), force=changed, **more)

    def update(self, *, force: bool = False, **changes: Any) -> None:
        """Change keys; written at once if `force`, else when half a second has passed."""
        self._status |= changes
        self._on_change(self._status)
        if force or time.monotonic() - self._written >= _MIN_INTERVAL_S:
            self._status["updated_at"] = datetime.now(UTC).isoformat()
            self._write()

    def _write(self) -> None:
        """A page that can't be written ends neither a cycle nor the line that says why; the next change tries again."""
        self._written = time.monotonic()
        try:
            write_json(self._path, self._status)
        except OSError as error:
            if not self._mute:
                log.warning("status_not_written", reason=str(error), next="with the next change")
            self._mute = True
        else:
            self._mute = False
