"""What is read when everything has come to rest: the snapshots, the ledger, the topic, and a replay of the ledger."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.durability import training
from benchmarks.durability.parts import ProcessPart, python
from benchmarks.durability.stage import ENVIRONMENT, Stage
from benchmarks.durability.training_verdict import Training
from benchmarks.durability.verdict import Evidence, SnapshotVote
from benchmarks.waiting import wait_until
from deploy.config import to_toml
from feedback.contracts import ADAPTER_TOPIC, VOTE_TOPIC, AdapterPublished, VoteCast
from feedback.dataset import Dataset, DatasetError, Snapshot
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


def gather(stage: Stage, folder: Path, *, rebuild: bool, trained: bool) -> Evidence:
    """Read everything. Nothing may run but the brokers and the database.

    Args:
        rebuild: whether a dataset is made anew from a replay.
        trained: whether a trainer ran.

    Raises:
        NotDrained: a topic can't be read, or the replay isn't stored.
    """
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
        training=_training(stage, dataset, snapshot.manifest.id) if trained else None,
    )


def topic_votes(bootstrap: str) -> list[str]:
    """Vote ids on the topic, each partition in its order, repeats included.

    Raises:
        NotDrained: no broker answered for a long while.
    """
    return [VoteCast.from_bytes(value).vote_id for value in _values(bootstrap, VOTE_TOPIC)]


def _training(stage: Stage, dataset: Dataset, newest: str) -> Training:
    cycles, adapters = training.cycles(stage.config.paths), training.adapters(stage.config.paths.adapters)
    named = {cycle.snapshot for cycle in cycles} | {adapter.snapshot for adapter in adapters}
    said = [AdapterPublished.from_bytes(value) for value in _values(stage.bootstrap, ADAPTER_TOPIC)]
    return Training(
        cycles=cycles,
        adapters=adapters,
        announced=[(one.name, one.manifest_sha256) for one in said],
        snapshots=frozenset(name for name in named if name is not None and _is_whole(dataset, name)),
        newest=newest,
    )


def _is_whole(dataset: Dataset, snapshot_id: str) -> bool:
    with contextlib.suppress(DatasetError):
        dataset.load_snapshot(snapshot_id)
        return True
    return False


def _values(bootstrap: str, topic: str) -> list[bytes]:
    """What a topic holds, each partition in its order.

    Raises:
        NotDrained: no broker answered for a long while.
    """
    found: list[StoredRecord] = []
    records: list[StoredRecord] = []
    quiet = 0
    with closing(KafkaEventLog(bootstrap).consumer([topic], None)) as consumer:

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
                raise NotDrained(f"{topic} could not be read: {error}") from error
            quiet = 0 if records else quiet + 1
            found += records
    return [one.value or b"" for one in sorted(found, key=lambda one: (one.partition, one.offset))]


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
