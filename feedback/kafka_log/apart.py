"""The event log through a process of its own: Kafka's client stays off this one's interpreter lock (adr/0080).

What the client does with an event costs as much of the lock as taking a vote does, and serving has only one lock.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, Self

import feedback
from feedback.config import FeedbackConfig, KafkaSecurity
from feedback.event_log import (
    EventConsumer,
    EventLogError,
    EventLogUnavailable,
    EventProducer,
    OutgoingRecord,
    StoredRecord,
)
from feedback.kafka_log import wire
from feedback.kafka_log.client import addresses
from feedback.kafka_log.wire import Carried, Said, Wire
from feedback.kafka_security import options

CALL_S = 120.0
"""Seconds after which an answer is not waited for: every call over there is bounded far below that."""
START_S = 30.0
"""The same for the first answer of all: a new process imports its modules first, maybe beside an engine's start."""
STOP_S = 2.0


class Child(Protocol):
    """Whoever answers at the other end."""

    def end(self) -> str:
        """End it, if it hasn't ended; returns how it ended."""


class _Process:
    """A child process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def end(self) -> str:
        """Kill it: it holds nothing that would have to be put away."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"exit status {self._process.wait(0.2)}"  # it may be ending by itself, of which its status tells
        self._process.kill()
        self._process.wait(STOP_S)
        return "killed"


def spawn() -> tuple[Wire, Child]:
    """Start a child process, its standard input connected to us."""
    ours, its = socket.socketpair()
    for timeout in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # within a message; between two, `poll` waits
        ours.setsockopt(socket.SOL_SOCKET, timeout, struct.pack("ll", round(CALL_S), 0))
    source = str(Path(feedback.__file__).resolve().parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "feedback.kafka_log.child"],
            stdin=its.fileno(),
            env={**os.environ, "PYTHONPATH": path},
        )
    return Connection(ours.detach()), _Process(process)


class KafkaApart:
    """`KafkaEventLog` in a process of its own. Implements `feedback.event_log.EventLog`; close it at the end.

    One call is made at a time, whoever makes it: meant for one user with one thread, as the relay is. The process is
    started by the first call, and again by the first call after it ended; its clients are gone with it.

    Args:
        bootstrap, partitions, replication, security: as of `KafkaEventLog`; passwords the process finds by itself.
        process: names the process in its logs.
        start: starts the other end.

    Raises:
        EventLogError: `bootstrap` isn't an address.
    """

    def __init__(
        self,
        bootstrap: str,
        partitions: int = 3,
        replication: int = -1,
        *,
        security: KafkaSecurity | None = None,
        process: str = "kafka",
        start: Callable[[], tuple[Wire, Child]] = spawn,
    ) -> None:
        addresses(bootstrap)
        self._settings: dict[str, Any] = {
            "bootstrap": bootstrap,
            "partitions": partitions,
            "replication": replication,
            "security": (security or KafkaSecurity()).model_dump(mode="json"),
            "process": process,
        }
        self._start = start
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._child: Child | None = None
        self._life = 0

    @classmethod
    def configured(cls, bootstrap: str, config: FeedbackConfig, *, process: str) -> Self:
        """As the settings say.

        Raises:
            EventLogError: `bootstrap` isn't an address, or TLS and login can't be used as set.
        """
        security = config.kafka_security
        options(security)
        return cls(bootstrap, config.partitions, config.replication, security=security, process=process)

    def ensure_topics(self, topics: Iterable[str]) -> frozenset[str]:
        """Create what is missing; see `EventLog.ensure_topics`."""
        answer, _ = self.call({"call": "ensure_topics", "topics": sorted(set(topics))})
        self._seen = answer["seen"]
        return frozenset(answer["made"])

    def producer(self) -> EventProducer:
        """A new writer."""
        answer, _ = self.call({"call": "producer"})
        return _Producer(self, answer["client"], self._life)

    def consumer(self, topics: Sequence[str], group: str | None) -> EventConsumer:
        """A new reader."""
        answer, _ = self.call({"call": "consumer", "topics": list(topics), "group": group})
        return _Consumer(self, answer["client"], self._life)

    def check(self) -> None:
        """Raises:
        EventLogUnavailable: the broker does not answer.
        """
        self.call({"call": "check"})

    def close(self) -> None:
        """End the process, whatever it is at; safe to call twice, and from any thread."""
        child = self._child
        if child is not None:
            child.end()

    def call(
        self, said: Said, carried: Sequence[bytes | None] = (), *, life: int | None = None
    ) -> tuple[Said, Carried]:
        """Ask the process and wait for its answer.

        Args:
            life: of the process that the call is for; None for any.

        Raises:
            EventLogError: what the event log raised over there.
            EventLogUnavailable: or the process has ended.
        """
        with self._lock:
            if life is not None and (life != self._life or self._wire is None):
                raise EventLogUnavailable("the process of the Kafka client has ended since; make new clients")
            started = self._wire is None
            try:
                answer, brought = self._ask(said, carried, START_S + CALL_S if started else CALL_S)
            except (EOFError, OSError) as error:
                raise EventLogUnavailable(self._gone(str(error))) from error
        if "error" in answer:
            raise wire.error_of(answer["error"])
        return answer, brought

    def _ask(self, said: Said, carried: Sequence[bytes | None], timeout_s: float) -> tuple[Said, Carried]:
        if self._wire is None:
            self._wire, self._child = self._start()
            self._life += 1
            wire.send(self._wire, self._settings | {"seen": self._seen})
        wire.send(self._wire, said, carried)
        if not self._wire.poll(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:.0f} s")
        return wire.receive(self._wire)

    def _gone(self, why: str) -> str:
        how = "not started" if self._child is None else self._child.end()
        if self._wire is not None:
            self._wire.close()
        self._wire, self._child = None, None
        return f"the process of the Kafka client is gone ({how}; {why or 'closed'}); another one is started"


class _Client:
    def __init__(self, log: KafkaApart, number: int, life: int) -> None:
        self._log = log
        self._number = number
        self._life = life

    def close(self) -> None:
        """Let go of the connection; where the process has ended there is none."""
        with contextlib.suppress(EventLogError):
            self._call({"call": "close"})

    def _call(self, said: Said, carried: Sequence[bytes | None] = ()) -> tuple[Said, Carried]:
        return self._log.call(said | {"client": self._number}, carried, life=self._life)


class _Producer(_Client):
    """Writes over there."""

    def send(self, records: Sequence[OutgoingRecord]) -> list[EventLogError | None]:
        """Send a batch and wait; see `EventProducer.send`."""
        said, carried = wire.outgoing_said(records)
        answer, _ = self._call({"call": "send", "records": said}, carried)
        outcomes: list[EventLogError | None] = [None] * len(records)
        for at, *error in answer["failed"]:
            outcomes[at] = wire.error_of(error)
        return outcomes


class _Consumer(_Client):
    """Reads over there."""

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        """The next records; see `EventConsumer.poll`."""
        answer, brought = self._call({"call": "poll", "timeout_s": timeout_s, "max_records": max_records})
        return wire.stored_of(answer["records"], brought)

    def commit(self) -> None:
        """Mark what `poll` returned as dealt with; see `EventConsumer.commit`."""
        self._call({"call": "commit"})

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet polled; see `EventConsumer.lag`."""
        answer, _ = self._call({"call": "lag"})
        return {(topic, partition): left for topic, partition, left in answer["lag"]}
