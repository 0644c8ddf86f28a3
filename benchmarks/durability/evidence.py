"""What is read when everything has come to rest: the snapshots, the ledger, the topic, and a replay of the ledger."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.durability.parts import ProcessPart, python
from benchmarks.durability.stage import ENVIRONMENT, Stage
from benchmarks.durability.verdict import Evidence, SnapshotVote
from deploy.config import to_toml
from feedback.contracts import VOTE_TOPIC, VoteCast
from feedback.dataset import Dataset, Snapshot
from feedback.event_log import EventLogUnavailable
from feedback.kafka_log import KafkaEventLog
from feedback.ledger import Ledger, LedgerCounts, LedgerUnavailable
from feedback.voters import weigher

DRAIN_S = 240.0
QUIET_POLLS = 8
"""Empty polls in a row after which a topic is read to its end."""


class NotDrained(Exception):
    """Events are still on their way after a long wait: something is stuck."""


def drain(stage: Stage, keep_up: Callable[[], None], timeout_s: float = DRAIN_S) -> float:
    """Wait until the curator has confirmed every event; returns the seconds that it took.

    Args:
        keep_up: called now and then: starts parts again that ended by themselves.

    Raises:
        NotDrained: it didn't in time.
    """
    began = time.monotonic()
    last: object = "the ledger could not be read"
    while time.monotonic() - began < timeout_s:
        keep_up()
        with contextlib.suppress(LedgerUnavailable), closing(Ledger.open(stage.ledger_url)) as ledger:
            stats = ledger.outbox_stats()
            if stats.pending == stats.unconfirmed == 0:
                return time.monotonic() - began
            last = stats
        time.sleep(0.5)
    raise NotDrained(f"after {timeout_s:.0f} s: {last}")


def gather(stage: Stage, folder: Path, *, rebuild: bool) -> Evidence:
    """Read everything. Nothing may run but the brokers and the database."""
    dataset = Dataset(stage.config.paths.dataset, weigher(stage.config.feedback.voters))
    passing = {manifest.id: list(dataset.vote_ids(manifest.id)) for manifest in dataset.snapshots()}
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    with closing(Ledger.open(stage.ledger_url)) as ledger:
        kept = frozenset(vote.vote_id for vote in ledger.votes_between())
        parked, counts = ledger.outbox_stats().parked, ledger.counts()
    return Evidence(
        votes=_votes(snapshot),
        prompts=snapshot.prompts["pair_id"].to_pylist(),
        passing=passing,
        ledger=kept,
        topic=topic_votes(stage.bootstrap),
        topic_forgets=stage.forgets,
        dead_letters=len(list((stage.config.paths.dataset / "dead-letters").glob("*.json"))),
        parked=parked,
        snapshot=snapshot.manifest.id,
        rebuilt=_rebuild(stage, folder, counts) if rebuild else None,
    )


def topic_votes(bootstrap: str) -> list[str]:
    """Vote ids on the topic, each partition in its order, repeats included."""
    found: list[tuple[int, int, str]] = []
    quiet = 0
    with closing(KafkaEventLog(bootstrap).consumer([VOTE_TOPIC], None)) as consumer:
        while quiet < QUIET_POLLS:
            try:
                records = consumer.poll(0.5)
            except EventLogUnavailable:
                time.sleep(0.5)
                continue
            quiet = 0 if records else quiet + 1
            found += [(r.partition, r.offset, VoteCast.from_bytes(r.value or b"").vote_id) for r in records]
    return [vote_id for _, _, vote_id in sorted(found)]


def _rebuild(stage: Stage, folder: Path, counts: LedgerCounts) -> str:
    """The snapshot of a dataset made anew: `hustings replay` from the ledger, and a curator with an empty folder."""
    config = stage.config.model_copy(update={"data_dir": folder / "rebuilt"})
    config.paths.create()
    file = folder / "rebuilt.toml"
    feedback = config.feedback.model_copy(update={"ledger_url": stage.ledger_url})
    file.write_text(to_toml(config.model_copy(update={"feedback": feedback})))
    done = subprocess.run(
        python("-m", "deploy", "replay", "--config", str(file)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise NotDrained(f"hustings replay ended with {done.returncode}: {done.stderr[-400:]}")
    curator = ProcessPart(
        "curate", python("-m", "deploy", "curate", "--config", str(file)), folder / "rebuilding.log", ENVIRONMENT
    )
    curator.start()
    try:
        _wait_for_all(Dataset(config.paths.dataset), counts)
    finally:
        curator.stop()
    return Dataset(config.paths.dataset, weigher(config.feedback.voters)).build_snapshot().id


def _wait_for_all(dataset: Dataset, counts: LedgerCounts, timeout_s: float = DRAIN_S) -> None:
    """Not for receipts: those of the first time confirm the replay as well."""
    deadline = time.monotonic() + timeout_s
    while True:
        stored = dataset.count_new(None)
        if (stored.decisive + stored.ties, stored.prompts) == (counts.votes, counts.pairs):
            return
        if time.monotonic() > deadline:
            raise NotDrained(f"of {counts} the replay brought {stored} within {timeout_s:.0f} s")
        time.sleep(0.5)


def _votes(snapshot: Snapshot) -> list[SnapshotVote]:
    rows = []
    columns = ["vote_id", "pair_id", "conversation_id", "outcome", "chosen_position", "comment", "cast_at"]
    for table in ("preferences", "ties"):
        for row in getattr(snapshot, table).select(columns).to_pylist():
            rows.append(
                SnapshotVote(
                    vote_id=row["vote_id"],
                    pair_id=row["pair_id"],
                    conversation_id=row["conversation_id"],
                    choice=row["chosen_position"] if row["outcome"] == "decisive" else row["outcome"],
                    comment=row["comment"],
                    at_us=round(row["cast_at"].timestamp() * 1e6),
                )
            )
    return rows
