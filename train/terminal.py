"""A cycle's progress on a terminal; silent where stderr is none (structlog's lines are there then)."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_RUNNING = ("snapshot", "features", "reward", "sft", "ppo", "evaluate", "publish")


class TerminalProgress:
    """One bar for the cycle: phase, share done, reward and KL."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to show anything on."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def observe(self, status: dict[str, Any]) -> None:
        """Show a status; samples are printed once when they come."""
        if not self.shown:
            return
        if status.get("phase") not in _RUNNING:
            self._end()
            return
        if self._progress is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self._console)
            self._progress.start()
            self._task = self._progress.add_task("", total=1.0, figures="")
        assert self._task is not None
        text = f"cycle {status.get('cycle', '')} {status['phase']}"
        self._progress.update(
            self._task, completed=status.get("progress", 0.0), description=text, figures=status.get("message", "")
        )

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
