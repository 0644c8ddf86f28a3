"""Keeps the processes of `hustings up` alive, merges what they say, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy import reaper
from deploy.child import Child, ChildSpec, describe_status, telling_line
from deploy.console import Console, LogFile
from deploy.errors import ChildFailed

USAGE_STATUS = 2
"""Exit status of a child that can't run as it was called: trying again won't help."""
_MOST_DOUBLINGS = 62
"""More than any waiting time needs; after a thousand failures (a night of them) the power would be no number."""


class Backoff:
    """Waiting times between restarts: doubling from `first_s` to `longest_s`, back to the first after a long run."""

    def __init__(self, first_s: float = 1.0, longest_s: float = 60.0, steady_s: float = 60.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._steady_s = steady_s
        self.failures = 0

    def after(self, uptime_s: float) -> float:
        """Seconds to wait after a run of `uptime_s` that failed."""
        self.failures = 1 if uptime_s >= self._steady_s else self.failures + 1
        doublings = min(self.failures - 1, _MOST_DOUBLINGS)
        return float(min(self._longest_s, self._first_s * 2**doublings))


class Supervisor:
    """Runs children until it is told to stop.

    Args:
        specs: in the order of their start; they are stopped in reverse.
        on_ready: called once when every essential child is ready.
        on_started: called with the process ids by name after each start.
        give_up_after: failures in a row after which an essential child ends everything.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        logs: Path,
        console: Console,
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_started: Callable[[dict[str, int]], None] = lambda _: None,
        give_up_after: int = 5,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._console = console
        self._on_ready = on_ready
        self._on_started = on_started
        self._give_up_after = give_up_after
        self._backoff = backoff
        self._logs = {spec.name: LogFile(logs / f"{spec.name}.log") for spec in specs}
        self._children = {spec.name: Child(spec, console, self._logs[spec.name]) for spec in specs}
        self._ready = {spec.name: asyncio.Event() for spec in specs}
        self._stop = asyncio.Event()
        self._failure: ChildFailed | None = None
        self._reaper: subprocess.Popen[str] | None = None
        self._log_folder = logs

    def request_stop(self) -> None:
        """Stop everything in order; a second call kills at once."""
        if self._stop.is_set():
            self._console.say("killing everything now")
            for child in self._children.values():
                child.kill()
        self._stop.set()

    async def run(self) -> None:
        """Run until stopped.

        Raises:
            ChildFailed: an essential child would not stay up; everything else has been stopped.
        """
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup`: the terminal may go, and we stay
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self.request_stop)
        self._reaper = _start_reaper(max(child.spec.stop_grace_s for child in self._children.values()))
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children.values()]
        announcer = asyncio.create_task(self._announce())
        try:
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
            # A keeper ends early only by a fault of ours (disk full, say): stop the rest, then let it be seen.
            self._stop.set()
        finally:
            announcer.cancel()
            await self._stop_all(keepers)
            for number in numbers:
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        for keeper in keepers:
            if (error := keeper.exception()) is not None:
                raise error

    async def _keep(self, child: Child) -> None:
        await self._until_ready(child.spec.after_ready)
        backoff = self._backoff()
        while not self._stop.is_set():
            try:
                pid = await child.start()
            except OSError as error:
                why = f"{child.spec.name} can't be run: {error}"
                if child.spec.essential:
                    self._fail(why)
                    return
                pause = backoff.after(0.0)  # for want of memory, say, in which the others get by without it
                self._console.say(f"{why}; trying again in {pause:g} s")
                await self._sleep(pause)
                continue
            self._tell_reaper(f"+{pid}")
            if self._stop.is_set():  # it was asked to stop while this process was being made
                await child.stop()
                return
            self._on_started({name: kid.pid for name, kid in self._children.items() if kid.pid is not None})
            watcher = asyncio.create_task(self._watch_ready(child))
            status = await child.wait()
            self._tell_reaper(f"-{pid}")
            watcher.cancel()
            if not self._stop.is_set():
                await self._after_exit(child, status, backoff)

    async def _until_ready(self, names: Sequence[str]) -> None:
        """Return when all of them have been ready once, or everything is to stop."""
        waits = [asyncio.create_task(self._ready[name].wait()) for name in names]
        stopped = asyncio.create_task(self._stop.wait())
        for wait in waits:
            await asyncio.wait([wait, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in (*waits, stopped):
            task.cancel()

    async def _after_exit(self, child: Child, status: int, backoff: Backoff) -> None:
        name = child.spec.name
        pause = backoff.after(child.uptime_s)
        how = describe_status(status)
        said = telling_line(child.tail)
        last = f"; it said: {said}" if said and status != 0 else ""
        if child.spec.essential and (status == USAGE_STATUS or backoff.failures >= self._give_up_after):
            again = "" if status == USAGE_STATUS else f", {backoff.failures} times in a row"
            self._fail(f"{name} {how}{again}{last} (all of it: {self._log_folder / f'{name}.log'})")
            return
        self._console.say(f"{name} {how} after {child.uptime_s:.0f} s; starting it again in {pause:g} s{last}")
        await self._sleep(pause)

    async def _sleep(self, pause: float) -> None:
        """Wait so long, or until everything is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), timeout=pause)

    async def _watch_ready(self, child: Child) -> None:
        if child.spec.ready is not None:
            await child.spec.ready()
        self._ready[child.spec.name].set()

    async def _announce(self) -> None:
        for child in self._children.values():
            if child.spec.essential:
                await self._ready[child.spec.name].wait()
        self._on_ready()

    def _fail(self, message: str) -> None:
        self._failure = self._failure or ChildFailed(message)
        self._stop.set()

    async def _stop_all(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        for child in reversed(self._children.values()):
            if child.pid is not None:
                self._console.say(f"stopping {child.spec.name}")
            await child.stop()
        await asyncio.gather(*keepers, return_exceptions=True)
        for log in self._logs.values():
            log.close()
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait()

    def _tell_reaper(self, line: str) -> None:
        if self._reaper is None or self._reaper.stdin is None:
            return
        try:
            self._reaper.stdin.write(f"{line}\n")
            self._reaper.stdin.flush()
        except OSError:
            self._console.say("the clean-up helper is gone: should this process be killed, its children would go on")
            self._reaper = None


def _start_reaper(grace_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-S", "-E", str(Path(reaper.__file__)), str(grace_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
