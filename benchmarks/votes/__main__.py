"""Durable votes a second through HTTP, beside what lies under them, measured in turns.

    python -m benchmarks.votes [--kafka-script FILE] [--postgres] [--rounds 5] [--seconds 3] [--out FILE]

One serving process as it is (all but the engine: HTTP, checks, redaction, ledger, relay) and a load client in another
process; every vote is on disk before it is acknowledged. Before and after each round of votes, alone on the machine: a
kafka-python producer with acks=all that sends the same events, and the database's commits of one small row each. The
aim: at least half of the lower one. A machine's speed changes within minutes, so each round is held against the rivals
on either side of it, and the median of the rounds is what counts. `--kafka-script` starts an Apache Kafka in place of
the embedded broker (HUSTINGS_TEST_KAFKA).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.votes import bench, prepare, rivals
from benchmarks.waiting import wait_until
from feedback.broker import free_port
from feedback.ledger import Ledger
from tests.postgres import find_binaries, running_postgres

CONNECTIONS = (1, 8, 32, 128)
WARM = 200
READY_S = 60.0
DRAIN_S = 300.0
RIVAL_EVENTS = 2_000


def main() -> None:
    """Command line."""
    arguments = _arguments()
    with contextlib.ExitStack() as stack:
        url = None
        if arguments.postgres:
            binaries = find_binaries()
            if binaries is None:
                raise SystemExit("votes: no PostgreSQL on this machine; install it, or leave --postgres out")
            server = stack.enter_context(running_postgres(binaries))
            url = server.new_database("ledger")
        folder, broker = stack.enter_context(bench.staged(arguments))
        found = measure(folder, broker.address, url, arguments)
    bench.tell(found, arguments)


def measure(folder: Path, address: str, url: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one run."""
    events = prepare.vote_events(RIVAL_EVENTS)
    ledger_url = url or f"sqlite:///{folder / 'ledger.sqlite3'}"
    a_round = WARM + arguments.votes * len(arguments.connections)
    prepare.fill(ledger_url, a_round * arguments.rounds)
    load_before = os.getloadavg()[0]
    rivals_of = [_rivals(folder, address, url, events, arguments.seconds)]
    rounds = []
    for number in range(arguments.rounds):
        with _serving(folder, address, url, arguments.switch_interval) as port:
            runs = _votes(folder, port, a_round * number, arguments)
            drained = _drained(ledger_url)
        rivals_of.append(_rivals(folder, address, url, events, arguments.seconds))
        rounds.append(_round(rivals_of[-2], rivals_of[-1], runs, drained))
    return {
        "database": "SQLite" if url is None else "PostgreSQL",
        "event_bytes": len(events[0]),
        "of_lower": _spread([each["of_lower"] for each in rounds]),
        "rounds": rounds,
        "votes": a_round * arguments.rounds,
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }


def _votes(folder: Path, port: int, first: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Votes at each number of connections, after some to warm up."""
    _load(folder, port, range(first, first + WARM), 8)
    starts = range(first + WARM, first + WARM + arguments.votes * len(arguments.connections), arguments.votes)
    return [
        _load(folder, port, range(start, start + arguments.votes), connections)
        for start, connections in zip(starts, arguments.connections, strict=True)
    ]


def _round(
    before: dict[str, float], after: dict[str, float], runs: list[dict[str, Any]], drained: float
) -> dict[str, Any]:
    lower = min(statistics.mean((before[name], after[name])) for name in before)
    best = max(run["votes_per_s"] for run in runs)
    return {
        "rivals_per_s": {name: [round(before[name]), round(after[name])] for name in before},
        "runs": runs,
        "of_lower": round(best / lower, 2),
        "outbox_drained_after_s": round(drained, 1),
    }


def _spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _rivals(folder: Path, address: str, url: str | None, events: list[bytes], seconds: float) -> dict[str, float]:
    commits = (
        rivals.sqlite_commits(folder / "rival.sqlite3", seconds)
        if url is None
        else rivals.postgres_commits(url, seconds)
    )
    return {"producer": rivals.producer_rate(address, events, seconds), "commits": commits}


@contextlib.contextmanager
def _serving(folder: Path, address: str, url: str | None, switch_interval: float | None) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.votes.server", "--data-dir", str(folder), "--port", str(port)]
    command += ["--kafka", address] + (["--ledger", url] if url else [])
    command += ["--switch-interval", str(switch_interval)] if switch_interval else []
    environment = {**os.environ, "HUSTINGS_SECRET": prepare.SECRET, "HUSTINGS_LOG_FORMAT": "json"}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            _until_ready(port, process, folder / "serve.log")
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    def answered() -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200)
        return False

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: process.poll() is not None or answered(), READY_S, 0.1)
        if process.poll() is None:
            return
    raise SystemExit(f"votes: serving didn't get ready:\n{log.read_text()[-2000:]}")


def _load(folder: Path, port: int, numbers: range, connections: int) -> dict[str, Any]:
    requests = folder / "requests"
    prepare.write_requests(requests, numbers)
    command = [sys.executable, "-m", "benchmarks.votes.load", "--port", str(port), "--requests", str(requests)]
    done = subprocess.run([*command, "--connections", str(connections)], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["statuses"] != {"201": len(numbers)}:
        raise SystemExit(f"votes: not every vote was new and taken: {found['statuses']}")
    return found


def _drained(url: str) -> float:
    """Seconds from now until the relay has sent everything."""
    with contextlib.closing(Ledger.open(url)) as ledger:
        return wait_until(lambda: not ledger.outbox_stats().pending, DRAIN_S, 0.05)


def _arguments() -> argparse.Namespace:
    parser = bench.parser(__doc__)
    parser.add_argument("--postgres", action="store_true", help="the ledger on PostgreSQL in place of SQLite")
    parser.add_argument("--rounds", type=int, default=5, help="of votes, with rivals before and after each")
    parser.add_argument("--votes", type=int, default=2_000, help="of a round, for each number of connections")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--switch-interval", type=float, help="of serving's threads (Python's own is 0.005)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each rival, each time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
