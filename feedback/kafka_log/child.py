"""The process that `feedback.kafka_log.apart` starts: an event log for its parent, one call at a time.

It knows nothing that its parent couldn't tell another one, and ends when its parent is gone.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection

from feedback import logs
from feedback.config import KafkaSecurity
from feedback.event_log import EventConsumer, EventLog, EventLogError, EventProducer
from feedback.kafka_log import wire
from feedback.kafka_log.log import KafkaEventLog
from feedback.kafka_log.wire import Carried, Said, Wire

STDIN = 0


def main() -> None:
    """Serve the parent, which is at the other end of the standard input, until it is gone."""
    for meant_for_the_parent in (signal.SIGINT, signal.SIGTERM):  # who stops in its own time, and this one with it
        signal.signal(meant_for_the_parent, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError), Connection(STDIN) as parent:
        settings, _ = wire.receive(parent)
        logs.configure(settings["process"])
        security = KafkaSecurity.model_validate(settings["security"])
        shape = settings["partitions"], settings["replication"]
        log = KafkaEventLog(settings["bootstrap"], *shape, settings["seen"], security)
        serve(parent, log, lambda: log.seen)


def serve(parent: Wire, log: EventLog, seen: Callable[[], dict[str, str]]) -> None:
    """Answer one call after another.

    Args:
        seen: the topics' ids, for the next process of this kind.

    Raises:
        EOFError, OSError: the parent is gone.
    """
    calls = _Calls(log, seen)
    while True:
        said, carried = wire.receive(parent)
        try:
            answer, brought = calls.answer(said, carried)
        except EventLogError as error:
            answer, brought = {"error": wire.error_said(error)}, []
        wire.send(parent, answer, brought)


class _Calls:
    """The calls by name, and the clients by the numbers that the parent knows them by."""

    def __init__(self, log: EventLog, seen: Callable[[], dict[str, str]]) -> None:
        self._log = log
        self._seen = seen
        self._numbers = count(1)
        self._producers: dict[int, EventProducer] = {}
        self._consumers: dict[int, EventConsumer] = {}

    def answer(self, said: Said, carried: Carried) -> tuple[Said, Carried]:
        """What is to be said, and carried, of one call."""
        if said["call"] == "poll":
            records = self._consumers[said["client"]].poll(said["timeout_s"], said["max_records"])
            stored, brought = wire.stored_said(records)
            return {"records": stored}, brought
        return self._plain(said, carried), []

    def _plain(self, said: Said, carried: Carried) -> Said:
        answer: Said = {}
        match said["call"]:
            case "ensure_topics":
                answer = {"made": sorted(self._log.ensure_topics(said["topics"])), "seen": self._seen()}
            case "check":
                self._log.check()
            case "producer":
                answer = {"client": next(self._numbers)}
                self._producers[answer["client"]] = self._log.producer()
            case "consumer":
                answer = {"client": next(self._numbers)}
                self._consumers[answer["client"]] = self._log.consumer(said["topics"], said["group"])
            case "close":
                client = self._producers.pop(said["client"], None) or self._consumers.pop(said["client"], None)
                if client is not None:
                    client.close()
            case "send":
                outcomes = self._producers[said["client"]].send(wire.outgoing_of(said["records"], carried))
                failed = [[at, *wire.error_said(error)] for at, error in enumerate(outcomes) if error is not None]
                answer = {"failed": failed}
            case "commit":
                self._consumers[said["client"]].commit()
            case "lag":
                lag = self._consumers[said["client"]].lag()
                answer = {"lag": [[topic, partition, left] for (topic, partition), left in lag.items()]}
            case unknown:
                raise AssertionError(f"parent and child are of one version, and {unknown!r} is no call")
        return answer


if __name__ == "__main__":
    main()
