"""One supervised process: start, output, stop, and the reason when it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from deploy.console import Console, LogFile, lines_of, plain

TAIL_LINES = 30
_ERROR = re.compile(r"\[(error|critical)\s*\]|\"level\": ?\"(error|critical)\"")


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run.

    Attributes:
        environment: added to the supervisor's own.
        ready: awaited after each start; returns when the process can do its work.
        essential: nothing works without it, so the supervisor gives up when it would not stay up.
        after_ready: names of children that must be ready before this one is started the first time.
        oom_score: how much sooner than others the kernel should kill it for memory (0 to 1000).
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], Awaitable[None]] | None = None
    essential: bool = True
    after_ready: tuple[str, ...] = ()
    stop_grace_s: float = 15.0
    oom_score: int = 0


class Child:
    """A running process of a spec, in a session (and so a process group) of its own."""

    def __init__(self, spec: ChildSpec, console: Console, log: LogFile) -> None:
        self.spec = spec
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.started_at = 0.0
        self._console = console
        self._log = log
        self._log_works = True
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, which is its group's id too, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def uptime_s(self) -> float:
        """Seconds since the last start."""
        return time.monotonic() - self.started_at

    async def start(self) -> int:
        """Start it; returns the process id.

        Raises:
            OSError: the command can't be run.
        """
        self.tail.clear()
        # A pipe of our own: asyncio's would make `wait` last until grandchildren have closed it too, so that a killed
        # serving process would not be seen to have ended while its engine core lives.
        read_end, write_end = os.pipe()
        output = os.fdopen(read_end, "rb", buffering=0)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env={**os.environ, **self.spec.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
            )
        except OSError:
            output.close()
            raise
        finally:
            os.close(write_end)
        self.started_at = time.monotonic()
        _set_oom_score(self._process.pid, self.spec.oom_score)
        self._pump = asyncio.create_task(self._read_output(output))
        return self._process.pid

    async def wait(self) -> int:
        """The exit status; what is left of its group is cleared, its last output taken in."""
        assert self._process is not None
        assert self._pump is not None
        status = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pump, timeout=2)
        return status

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to its whole group after the grace time."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), timeout=self.spec.stop_grace_s)
            except TimeoutError:
                self._console.say(f"{self.spec.name} did not stop within {self.spec.stop_grace_s:g} s; killing it")
                self.kill()
        await self.wait()

    def kill(self) -> None:
        """SIGKILL to its group, now."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def _read_output(self, output: IO[bytes]) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), output
        )
        rest = b""
        try:
            while chunk := await reader.read(65536):
                lines, rest = lines_of(rest + chunk)
                for line in lines:
                    self._take(line)
            if rest:
                self._take(lines_of(rest + b"\n")[0][0])
        finally:
            transport.close()

    def _take(self, line: str) -> None:
        if plain(line).strip():
            self.tail.append(plain(line))
        try:
            self._log.write(line)
        except OSError as error:  # a full disk must not cut off the process's output, which would block it
            if self._log_works:
                self._console.say(f"the log of {self.spec.name} can't be written ({error.strerror}); going on without")
            self._log_works = False
        else:
            self._log_works = True
        self._console.line(self.spec.name, line)


def _set_oom_score(pid: int, score: int) -> None:
    with contextlib.suppress(OSError):  # no Linux, or not allowed: the kernel decides alone, as without us
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score), encoding="ascii")


def telling_line(tail: Sequence[str]) -> str:
    """The line that says best why a process ended: its last one of level error, else its last one; "" for none."""
    errors = [line for line in tail if _ERROR.search(line)]
    return (errors or [*tail] or [""])[-1].strip()


def describe_status(status: int) -> str:
    """How a process ended, in words."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = "unknown"
        hint = " (out of memory? see `dmesg`)" if -status == signal.SIGKILL else ""
        return f"was killed by signal {-status}, {name}{hint}"
    return "ended" if status == 0 else f"ended with status {status}"
