"""Relay and curator: events a second, beside Kafka's own producer-perf and a raw kafka-python producer.

    python -m benchmarks.stream [--votes 10000] [--postgres] [--kafka-script FILE --kafka-tool FILE] [--out FILE]

A ledger full of votes that nobody was told of; the relay sends them (acks=all, idempotent), then a curator reads them
into part files and confirms them. Each runs alone, in the process that measures it. The embedded broker by default, an
Apache Kafka with `--kafka-script` (HUSTINGS_TEST_KAFKA); `--kafka-tool` runs Kafka's producer-perf on it, with records
of the same size.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.votes import bench, prepare, rivals
from benchmarks.waiting import wait_until
from feedback.config import FeedbackConfig
from feedback.curator import Curator
from feedback.dataset import Dataset
from feedback.event_log import ErasableEventLog, EventLog
from feedback.ledger import Ledger, VoteDraft
from feedback.relay import Relay
from tests.postgres import find_binaries, running_postgres

GROUP = 500
WAIT_S = 300.0


def main() -> None:
    """Command line."""
    arguments = _arguments()
    with bench.staged(arguments) as (folder, broker), ExitStack() as stack:
        url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        if arguments.postgres:
            binaries = find_binaries()
            if binaries is None:
                raise SystemExit("stream: no PostgreSQL on this machine; install it, or leave --postgres out")
            url = stack.enter_context(running_postgres(binaries)).new_database("ledger")
        found = measure(folder, url, broker.log(), broker.address, arguments)
    bench.tell(found, arguments)


def measure(
    folder: Path, url: str, log: ErasableEventLog, address: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Everything, one after the other."""
    events = prepare.vote_events(2_000)
    found: dict[str, Any] = {"votes": arguments.votes, "event_bytes": len(events[0])}
    found["ledger"] = "PostgreSQL" if arguments.postgres else "SQLite"
    found["kafka_python_per_s"] = round(rivals.producer_rate(address, events, arguments.seconds))
    if arguments.kafka_tool:
        found["producer_perf_per_s"] = producer_perf(arguments.kafka_tool, address, len(events[0]))
    config = FeedbackConfig(receipt_timeout_s=3600.0)
    ledger = voted(url, arguments.votes)
    found["relayed_per_s"] = round(arguments.votes / relay(ledger, log, config))
    found["curated_per_s"] = round(arguments.votes / curate(folder, log, config, arguments.votes))
    found["confirmed_per_s"] = round(arguments.votes / confirm(ledger, log, config))
    ledger.close()
    return found


def voted(url: str, votes: int) -> Ledger:
    """A ledger with so many votes, all to be sent."""
    prepare.fill(url, votes)
    ledger = Ledger.open(url)
    for start in range(0, votes, GROUP):
        ledger.record_votes([_draft(number) for number in range(start, min(start + GROUP, votes))])
    return ledger


def relay(ledger: Ledger, log: EventLog, config: FeedbackConfig) -> float:
    """Seconds until the broker has acknowledged everything."""
    sender = Relay(ledger, log, config)
    return _timed(sender.start, lambda: ledger.outbox_stats().pending == 0, sender.stop)


def curate(folder: Path, log: ErasableEventLog, config: FeedbackConfig, votes: int) -> float:
    """Seconds until everything is in part files and the receipts are sent; joining the group is left out."""
    dataset, stop, first, last = Dataset(folder / "dataset"), threading.Event(), threading.Event(), threading.Event()

    def at(step: str) -> None:
        if step == "parts":
            first.set()
        elif step == "commit" and dataset.count_new(None).decisive >= votes:
            last.set()

    thread = threading.Thread(target=Curator(log, dataset, config, at=at).run, args=(stop,))

    def end() -> None:
        stop.set()
        thread.join()

    thread.start()
    first.wait(WAIT_S)
    return _timed(lambda: None, last.is_set, end)


def confirm(ledger: Ledger, log: EventLog, config: FeedbackConfig) -> float:
    """Seconds until a relay has heard all receipts."""
    hearer = Relay(ledger, log, config.model_copy(update={"relay_batch": 1}))
    hearer._first = False  # what was sent is not to be sent again
    return _timed(hearer.start, lambda: ledger.outbox_stats().unconfirmed == 0, hearer.stop)


def producer_perf(tool: Path, address: str, size: int, records: int = 100_000) -> int:
    """Records a second by Kafka's own tool, acks=all."""
    command = [
        str(tool),
        "producer-perf",
        "--topic",
        rivals.TOPIC,
        "--num-records",
        str(records),
        "--record-size",
        str(size),
    ]
    command += ["--throughput", "-1", "--command-property", f"bootstrap.servers={address}", "acks=all"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = re.findall(r"([\d.]+) records/sec", done.stdout)
    return round(float(found[-1]))


def _draft(number: int) -> VoteDraft:
    vote = prepare.vote(number)
    return VoteDraft(vote.pair.pair_id, vote.voter, vote.choice)


def _timed(start: Callable[[], object], done: Callable[[], bool], end: Callable[[], object]) -> float:
    began = time.perf_counter()
    start()
    wait_until(done, WAIT_S, 0.02)
    took = time.perf_counter() - began
    end()
    return took


def _arguments() -> argparse.Namespace:
    parser = bench.parser(__doc__)
    parser.add_argument("--kafka-tool", type=Path, help="Kafka's tools, to run producer-perf with")
    parser.add_argument("--votes", type=int, default=10_000)
    parser.add_argument("--postgres", action="store_true", help="the ledger on PostgreSQL in place of SQLite")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the kafka-python producer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
