"""Kill parts of Hustings (SIGKILL) at random moments under a load of votes, and count what came of every vote.

    python -m benchmarks.durability                                       the whole matrix, 100 kills
    python -m benchmarks.durability --log kafka3 --ledger postgres --kills 20 --seed 7

Serving (HTTP and ledger, with an instant engine), its relay, curator, trainer (on a tiny model, cycle after cycle),
broker and database run as processes of their own. Voters vote over HTTP and repeat what isn't answered. At the end
every vote that was acknowledged must be in the snapshot exactly once, as it was voted, no other may, and each
conversation's votes must be in their order; a dataset made anew from `hustings replay` must have the same snapshot.
The trainer must have ended the cycle that was cut off, and one that read all votes; every adapter that can be seen
must be whole, announced as it is, and of a snapshot that is there. Exit status 1 otherwise.

Apache Kafka is taken from the start script that HUSTINGS_TEST_KAFKA names, PostgreSQL from Debian's package; a case
whose parts aren't here is reported as not run, and is a failure unless --skip-missing is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from benchmarks.durability.stage import LedgerKind, LogKind, NotHere
from benchmarks.durability.trial import Case, run

KILLS = {"embedded": 20, "kafka": 15, "kafka3": 15}
"""Kills of a case where --kills isn't given: 100 over the six cases."""


def main() -> int:
    """Run the cases that were asked for; 1 where one found a fault or could not run."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the parts would outlive us
    failed = False
    for number, (log, ledger) in enumerate(itertools.product(arguments.log, arguments.ledger)):
        case = Case(
            log,
            ledger,
            arguments.kills or KILLS[log],
            arguments.seed + number,
            servings=arguments.servings if ledger == "postgres" else 1,
            curators=arguments.curators,
            voters=arguments.voters,
            outage_s=arguments.outage,
            trainer=arguments.trainer,
        )
        print(f"== {case.name}: {case.kills} kills, seed {case.seed}", file=sys.stderr, flush=True)
        try:
            report = _run(case, arguments.keep)
        except NotHere as missing:
            print(f"== NOT run: {missing}", file=sys.stderr)
            failed = failed or not arguments.skip_missing
            continue
        print(json.dumps(report), flush=True)
        failed = failed or bool(report["faults"])
        if arguments.report is not None:
            _add(arguments.report, case, report)
    return int(failed)


def _run(case: Case, keep: Path | None) -> dict[str, Any]:
    def say(line: str) -> None:
        print(f"   {line}", file=sys.stderr, flush=True)

    if keep is not None:
        folder = keep / f"{case.log}-{case.ledger}-{case.seed}"
        folder.mkdir(parents=True)
        return run(case, folder, say).as_dict()
    with tempfile.TemporaryDirectory(prefix="hustings-durability-") as name:
        return run(case, Path(name), say).as_dict()


def _add(file: Path, case: Case, report: dict[str, Any]) -> None:
    """Put the report into the file, in place of an earlier one of the same case and seed."""
    before = json.loads(file.read_text()) if file.exists() else []
    kept = [one for one in before if (one["case"]["log"], one["case"]["ledger"], one["case"]["seed"]) != _key(case)]
    file.write_text(json.dumps([*kept, report], indent=1) + "\n")


def _key(case: Case) -> tuple[str, str, int]:
    return (case.log, case.ledger, case.seed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.durability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--log", nargs="+", choices=get_args(LogKind), default=get_args(LogKind), help="event logs")
    parser.add_argument(
        "--ledger", nargs="+", choices=get_args(LedgerKind), default=get_args(LedgerKind), help="databases"
    )
    parser.add_argument("--kills", type=int, help="of each case (default: 100 over the six)")
    parser.add_argument("--seed", type=int, default=1, help="of the first case; the next one's is one more")
    parser.add_argument("--servings", type=int, default=2, help="that share a PostgreSQL (SQLite has one)")
    parser.add_argument("--curators", type=int, default=1, help="that share the partitions and the dataset")
    parser.add_argument("--voters", type=int, default=6, help="voters at once")
    parser.add_argument("--outage", type=float, default=0.0, help="seconds without any broker after the kills")
    parser.add_argument(
        "--trainer", action=argparse.BooleanOptionalAction, default=True, help="train meanwhile, and kill the trainer"
    )
    parser.add_argument("--report", type=Path, help="JSON file that the reports are added to")
    parser.add_argument("--keep", type=Path, help="folder that keeps logs, ledger and dataset of each case")
    parser.add_argument("--skip-missing", action="store_true", help="a case that can't run here is no failure")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
