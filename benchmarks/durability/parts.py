"""The parts of one Hustings as processes that can be killed (SIGKILL, with all their children) and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.waiting import wait_until
from feedback.broker import EmbeddedBroker, wait_for_port
from tests.postgres import Postgres

TAIL_BYTES = 2_000
RELAY_MODULE = "feedback.kafka_log.child"
RELAY_S = 60.0
"""Seconds that a relay's process is waited for: serving may just be starting, or the database be away."""


class Part(Protocol):
    """Something to kill."""

    name: str

    def start(self) -> None:
        """Start it, where it was before."""

    def kill(self) -> None:
        """As kill -9 of the whole of it; returns when it is gone."""

    def ended(self) -> int | None:
        """The exit status where it ended without being killed by us, else None."""

    def stop(self) -> None:
        """End it for good; nobody looks at how."""


class ProcessPart:
    """A part that is one command in a session of its own.

    Args:
        port: waited for at each start, where given.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], port: int | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs, or until somebody looked at how it ended."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; its output is appended to the log."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self._port is not None:
            wait_for_port(self._port, self._process, timeout_s=90)

    def kill(self) -> None:
        """SIGKILL to its group."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ended(self) -> int | None:
        """Its exit status, None while it runs or was killed."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """Killed as well: a clean end is nothing that this harness relies on."""
        self.kill()

    def tail(self) -> str:
        """The end of what it said."""
        return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")


class EmbeddedBrokerPart:
    """The embedded broker, which forgets everything when it is killed."""

    name = "broker"

    def __init__(self, log: Path) -> None:
        self._broker = EmbeddedBroker(0, log)

    @property
    def address(self) -> str:
        """`host:port`, the same after each start."""
        return self._broker.address

    def start(self) -> None:
        """Start it; it listens on return."""
        self._broker.start()

    def kill(self) -> None:
        """SIGKILL."""
        self._broker.kill()

    def ended(self) -> int | None:
        """Its exit status where it ended by itself."""
        return None if self._broker.pid is None or psutil.pid_exists(self._broker.pid) else -1

    def stop(self) -> None:
        """End it."""
        self._broker.kill()


class RelayPart:
    """The process of a serving's relay that talks to the broker; killed alone, and serving starts another."""

    def __init__(self, name: str, serving: ProcessPart) -> None:
        self.name = name
        self._serving = serving

    def start(self) -> None:
        """Nothing: that is serving's own business, and what is tried."""

    def kill(self) -> None:
        """SIGKILL, once there is such a process.

        Raises:
            TimeoutError: serving runs without one for a long while.
        """
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = self._processes()
            return bool(found)

        try:
            wait_until(there, RELAY_S, 0.05)
        except TimeoutError as error:
            raise TimeoutError(f"{self._serving.name} has no process for its relay: {error}") from error
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def ended(self) -> int | None:
        """None: that is for serving to see."""
        return None

    def stop(self) -> None:
        """It ends with serving."""

    def _processes(self) -> list[psutil.Process]:
        if self._serving.pid is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [one for one in psutil.Process(self._serving.pid).children() if RELAY_MODULE in one.cmdline()]
        return []


class PostgresPart:
    """A PostgreSQL server: killed with every backend at once, as where its container is killed."""

    name = "database"

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._running = True

    def start(self) -> None:
        """Start it; it recovers from its write-ahead log."""
        self._server.start()
        self._running = True

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children."""
        if not self._running:
            return
        self._running = False
        self._server.kill()

    def ended(self) -> int | None:
        """None: a postmaster that ended by itself shows as a ledger that can't be reached."""
        return None

    def stop(self) -> None:
        """Its owner stops it."""


def python(*arguments: str) -> list[str]:
    """A command line of this interpreter."""
    return [sys.executable, *arguments]
