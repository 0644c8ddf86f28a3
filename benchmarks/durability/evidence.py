"""What is read when everything has come to rest: the snapshots, the ledger, the topic, and a replay of the ledger."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.durability.parts import ProcessPart, python
from benchmarks.durability.stage import ENVIRONMENT, Stage
from benchmarks.durability.verdict import Evidence, SnapshotVote
from benchmarks.waiting import wait_until
from deploy.config import to_toml
from feedback.contracts import VOTE_TOPIC, VoteCast
from feedback.dataset import Dataset, Snapshot
from feedback.event_log import EventLogUnavailable, StoredRecord
from feedback.kafka_log import KafkaEventLog
from feedback.ledger import Ledger, LedgerCounts, LedgerUnavailable, OutboxStats
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
    last: OutboxStats | None = None

    def confirmed() -> bool:
        nonlocal last
        keep_up()
        with contextlib.suppress(LedgerUnavailable), closing(Ledger.open(stage.ledger_url)) as ledger:
            last = ledger.outbox_stats()
            return last.pending == last.unconfirmed == 0
        return False

    try:
        return wait_until(confirmed, timeout_s, 0.5)
    except TimeoutError as error:
        raise NotDrained(f"{error}: {last or 'the ledger could not be read'}") from error


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
    """Vote ids on the topic, each partition in its order, repeats included.

    Raises:
        NotDrained: no broker answered for a long while.
    """
    found: list[tuple[int, int, str]] = []
    records: list[StoredRecord] = []
    quiet = 0
    with closing(KafkaEventLog(bootstrap).consumer([VOTE_TOPIC], None)) as consumer:

        def polled() -> bool:
            nonlocal records
            with contextlib.suppress(EventLogUnavailable):
                records = consumer.poll(0.5)
                return True
            return False

        while quiet < QUIET_POLLS:
            try:
                wait_until(polled, DRAIN_S, 0.5)
            except TimeoutError as error:
                raise NotDrained(f"the votes' topic could not be read: {error}") from error
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

    def all_there() -> bool:
        stored = dataset.count_new(None)
        return (stored.decisive + stored.ties, stored.prompts) == (counts.votes, counts.pairs)

    try:
        wait_until(all_there, timeout_s, 0.5)
    except TimeoutError as error:
        raise NotDrained(f"of {counts} the replay brought {dataset.count_new(None)}: {error}") from error


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
