"""The kill harness, a few kills long; the long runs are `python -m benchmarks.durability` (docs/durability.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.durability.stage import LedgerKind, LogKind, NotHere
from benchmarks.durability.trial import Case, run

# The Kafka client leaves the sockets of failed connections to the garbage collector, which complains.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
KILLS = 5


@pytest.mark.parametrize(
    ("log", "ledger", "servings", "trainer"), [("embedded", "sqlite", 1, True), ("kafka", "postgres", 2, False)]
)
def test_every_acknowledged_vote_is_in_the_snapshot_once_though_parts_are_killed(
    tmp_path: Path, log: LogKind, ledger: LedgerKind, servings: int, trainer: bool
) -> None:
    try:
        case = Case(log, ledger, kills=KILLS, seed=11, servings=servings, voters=3, trainer=trainer)
        report = run(case, tmp_path)
    except NotHere as missing:
        pytest.skip(str(missing))  # Kafka's script or PostgreSQL: the message says what to install or to set
    assert report.faults == []
    assert sum(report.kills.values()) == KILLS
    assert report.votes >= 5 * KILLS
    assert report.rebuilt == report.snapshot
    assert (report.cycles.get("published", 0) > 0) is trainer
