"""The brokers that the contract suite runs against, each with the same few switches."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Protocol

from feedback.broker import EmbeddedBroker, free_port, wait_for_port
from feedback.event_log import EventLog
from feedback.kafka_log import KafkaApart, KafkaEventLog, wire
from feedback.kafka_log.child import serve
from tests.fakes.event_log import FakeEventLog

KAFKA_ENV = "HUSTINGS_TEST_KAFKA"
REPOSITORY = Path(__file__).resolve().parents[2]


class Broker(Protocol):
    """A broker under test.

    Attributes:
        forgets: loses everything when it is killed.
    """

    forgets: bool

    def log(self) -> EventLog:
        """A new client of it."""

    def kill(self) -> None:
        """As kill -9."""

    def start(self) -> None:
        """Start it again at the same address."""

    def stop(self) -> None: ...


class FakeBroker:
    forgets = True

    def __init__(self) -> None:
        self._fake = FakeEventLog(max_record_bytes=4 * 1024 * 1024)

    def log(self) -> EventLog:
        return self._fake

    def kill(self) -> None:
        self._fake.forget()
        self._fake.down = True

    def start(self) -> None:
        self._fake.down = False

    def stop(self) -> None:
        pass


class OtherEnds:
    """Starts threads that stand for the processes, all on one fake broker."""

    def __init__(self, log: FakeEventLog) -> None:
        self.log = log
        self.wires: list[Any] = []
        self.told: list[dict[str, Any]] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> tuple[Any, OtherEnds]:
        ours, its = Pipe()
        self.wires.append(its)
        self._threads.append(threading.Thread(target=self._serve, args=(its,)))
        self._threads[-1].start()
        return ours, self

    def _serve(self, its: Any) -> None:
        with contextlib.suppress(EOFError, OSError), its:
            settings, _ = wire.receive(its)
            self.told.append(settings)
            serve(its, self.log, lambda: {"t": f"id-{len(self.told)}"})

    def kill(self, number: int) -> None:
        """As the end of a process: its side of the connection is shut."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.wires[number].fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def end(self) -> str:
        return "exit status 9"

    def end_all(self) -> None:
        for number, thread in enumerate(self._threads):
            self.kill(number)
            thread.join(5)
            assert not thread.is_alive()


class FakeApart(FakeBroker):
    """The fake, asked through `KafkaApart`."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = OtherEnds(self._fake)

    def log(self) -> EventLog:
        return KafkaApart("127.0.0.1:9", start=self._ends.start)

    def stop(self) -> None:
        self._ends.end_all()


class Embedded:
    forgets = True

    def __init__(self) -> None:
        self._broker = EmbeddedBroker(0)
        self._broker.start()

    @property
    def address(self) -> str:
        return self._broker.address

    def log(self) -> KafkaEventLog:
        return KafkaEventLog(self.address)

    def kill(self) -> None:
        self._broker.kill()

    def start(self) -> None:
        self._broker.start()

    def stop(self) -> None:
        self._broker.stop()


class ApacheKafka:
    forgets = False

    def __init__(self, script: Path, data: Path, own: Callable[[int], list[str]] = lambda _: []) -> None:
        """`own`: properties of its own, given its port."""
        self._script = script
        self._data = data
        self._port = free_port()
        self._own = own(self._port)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def log(self) -> KafkaEventLog:
        return KafkaEventLog(self.address)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        command = [str(self._script), "--data-dir", str(self._data), "--port", str(self._port), "--", *self._own]
        with (self._data / "output.log").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait_for_port(self._port, self._process, timeout_s=60)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


def kafka_script() -> Path | None:
    """The start script of Apache Kafka, if it lies on this machine: from the environment, or beside the repository."""
    if named := os.environ.get(KAFKA_ENV):
        return Path(named) if Path(named).is_file() else None
    places = [REPOSITORY.parent / "shared", REPOSITORY.parent.parent / "shared"]
    return next((p / "kafka" / "broker" for p in places if (p / "kafka" / "broker").is_file()), None)
