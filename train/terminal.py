"""A cycle on a terminal: its phases, a bar, each iteration's figures, answers before and after.

Silent where stderr is no terminal (structlog's lines are there then).
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from train.report.page import last_question
from train.status import PHASES

_COLUMNS = {
    "iteration": ("iteration", "{:.0f}"),
    "reward": ("score", "{:+.2f}"),
    "KL": ("kl", "{:.1f}"),
    "length": ("length", "{:.0f}"),
    "entropy": ("entropy", "{:.2f}"),
    "clipped": ("clip_fraction", "{:.0%}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "seconds": ("seconds", "{:.0f}"),
}
_SAMPLES = 3
_REFRESH_A_SECOND = 4
_BAR_WIDTH = 40


class TerminalProgress:
    """Follows the status board.

    Args:
        stream: where to show it.
        console: replaces what would be made of `stream`.
    """

    def __init__(self, stream: TextIO, console: Console | None = None) -> None:
        self._console = console or Console(file=stream)
        self._live: Live | None = None
        self._cycle: object = None
        self._began = 0.0
        self._iterations: dict[int, Mapping[str, Any]] = {}
        self._samples: Sequence[Mapping[str, str]] = ()

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
        """Show a status."""
        if not self.shown:
            return
        if status.get("phase") not in PHASES:
            self._end()
            return
        if self._live is None or status.get("cycle") != self._cycle:
            self._begin(status)
        figures = status.get("figures")
        if figures:
            self._iterations[int(figures["iteration"])] = figures
        self._samples = status.get("samples") or ()
        assert self._live is not None
        self._live.update(self._picture(status))

    def _begin(self, status: Mapping[str, Any]) -> None:
        self._end()
        self._cycle, self._began = status.get("cycle"), time.monotonic()
        self._iterations, self._samples = {}, ()
        self._live = Live(console=self._console, refresh_per_second=_REFRESH_A_SECOND)
        self._live.start()
        self._move_logs(self._console.file, sys.stderr)  # which is the display's now: lines go above it

    def _end(self) -> None:
        if self._live is not None:
            self._move_logs(sys.stderr, self._console.file)
            self._live.stop()
            self._live = None
            if self._samples:
                self._console.print(samples_table(self._samples))

    @staticmethod
    def _move_logs(before: IO[str], after: IO[str]) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(after)

    def _picture(self, status: Mapping[str, Any]) -> RenderableType:
        parts: list[RenderableType] = [phases_line(status), self._bar(status)]
        if self._iterations:
            parts.append(iterations_table([self._iterations[number] for number in sorted(self._iterations)]))
        return Group(*parts)

    def _bar(self, status: Mapping[str, Any]) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        told = [status.get("message") or status["phase"], f"after {clock(time.monotonic() - self._began)}"]
        if status.get("eta_s"):
            told.append(f"{clock(status['eta_s'])} to go")
        share = float(status.get("progress") or 0.0)
        row.add_row(ProgressBar(1.0, share, width=_BAR_WIDTH), f"{share:.0%}", Text(", ".join(told), style="dim"))
        return row


def phases_line(status: Mapping[str, Any]) -> Text:
    """`cycle 3  snapshot  features  reward  ...`: what is done dim, what is under way bold."""
    line = Text(f"cycle {status.get('cycle', '')}  ", style="bold")
    names = list(PHASES)
    at = names.index(status["phase"])
    for index, name in enumerate(names):
        line.append(name, style="green" if index < at else "bold reverse" if index == at else "dim")
        line.append("  ")
    return line


def iterations_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each iteration's figures; one beyond the governor's bounds is marked."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    table.add_column("")
    for row in rows:
        unknown = () if row.get("updates") else ("entropy", "clip_fraction")  # of an update that there was not
        cells = ["-" if key in unknown else _cell(row.get(key), form) for key, form in _COLUMNS.values()]
        table.add_row(*cells, Text("; ".join(row.get("breaches") or ()), style="yellow"))
    return table


def _cell(value: Any, form: str) -> str:
    if isinstance(value, Mapping):
        value = sum(value.values())
    return form.format(value) if isinstance(value, (int, float)) and math.isfinite(value) else "-"


def samples_table(samples: Sequence[Mapping[str, str]]) -> Table:
    """A few prompts, what the base answered and what the new policy does."""
    table = Table(title="Answers", title_justify="left", show_lines=True, expand=True)
    for title in ("asked", "before", "after"):
        table.add_column(title, ratio=1)
    for one in samples[:_SAMPLES]:  # people's and models' words: no markup is read in them
        table.add_row(Text(last_question(one["prompt"])), Text(one["before"].strip()), Text(one["after"].strip()))
    return table


def clock(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
