"""What the processes say: one stream for a person, coloured and with the process in front, and a file for each."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TextIO

COLOURS = {"hustings": "1", "broker": "35", "serve": "36", "curate": "32", "train": "33"}
KEPT_LOGS = 3
ROTATE_BYTES = 20_000_000
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def colours_wanted(stream: TextIO) -> bool:
    """Whether to colour: a terminal and no NO_COLOR, or FORCE_COLOR."""
    return "NO_COLOR" not in os.environ and (stream.isatty() or "FORCE_COLOR" in os.environ)


class Console:
    """Writes lines of several processes to one stream."""

    def __init__(self, stream: TextIO | None = None, *, width: int = 8) -> None:
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._width = width
        self.coloured = colours_wanted(self._stream)

    def line(self, process: str, text: str) -> None:
        """One line of `process`. Never fails: the terminal may be gone while the processes live on."""
        label = f"{process:<{self._width}} |"
        if self.coloured:
            label = f"\x1b[{COLOURS.get(process, '37')}m{label}\x1b[0m"
        if self._stream is None:
            return
        try:
            self._stream.write(f"{label} {text}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def say(self, text: str) -> None:
        """A line of the supervisor's own; several lines of text become several lines."""
        for part in text.splitlines() or [""]:
            self.line("hustings", part)


class LogFile:
    """A process's log on disk, without colours, rotated by size."""

    def __init__(self, path: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._file = self._open()

    def write(self, text: str) -> None:
        """Append one line.

        Raises:
            OSError: it can't be written, on a full disk say; a later one may.
        """
        if self._file.closed:  # a rotation failed half way
            self._file = self._open()
        self._file.write(plain(text) + "\n")
        self._file.flush()
        if self._file.tell() > self._rotate_bytes:
            self._rotate()

    def close(self) -> None:
        """Close the file; what a full disk doesn't take is lost."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _open(self) -> TextIO:
        return self._path.open("a", encoding="utf-8", errors="replace")

    def _rotate(self) -> None:
        self.close()
        for number in range(KEPT_LOGS - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file = self._open()


def plain(text: str) -> str:
    """Text without terminal escapes."""
    return _ESCAPES.sub("", text)


def lines_of(buffer: bytes) -> tuple[list[str], bytes]:
    """Whole lines of a process's output, and the rest; a line rewritten by carriage returns counts in its last form."""
    *whole, rest = buffer.split(b"\n")
    decoded = (line.decode("utf-8", errors="replace").rstrip("\r") for line in whole)
    return [line.rsplit("\r", 1)[-1] for line in decoded], rest
