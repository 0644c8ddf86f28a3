"""What must hold of the trainer after the kills: what it published, said of it, and read. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.durability.naming import named, repeated


@dataclass(frozen=True, slots=True)
class CycleSeen:
    """A cycle as its state file tells of it; `outcome` None: it has begun, and not ended."""

    number: int
    outcome: str | None
    reason: str | None
    snapshot: str | None
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Published:
    """An adapter's folder that serving could see.

    Attributes:
        snapshot: that its manifest names.
        manifest_sha256: of the manifest's bytes.
        trouble: why it isn't whole; None where it is.
    """

    name: str
    snapshot: str | None
    manifest_sha256: str | None
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Training:
    """What the trainer left behind when everything had come to rest.

    Attributes:
        cycles: oldest first. The last one ran after every vote was in the dataset.
        announced: name and digest of the manifest of each announcement on the topic.
        snapshots: ids of the snapshots that are there and were found unchanged.
        newest: id of the snapshot of everything.
    """

    cycles: Sequence[CycleSeen]
    adapters: Sequence[Published]
    announced: Sequence[tuple[str, str]]
    snapshots: frozenset[str]
    newest: str


def training_findings(training: Training) -> list[str]:
    """Every breach of the promise by the trainer, in words; empty where it was kept."""
    there = {adapter.name: adapter for adapter in training.adapters}
    published = {cycle.adapter: cycle for cycle in training.cycles if cycle.outcome == "published" and cycle.adapter}
    digests = {(adapter.name, adapter.manifest_sha256) for adapter in training.adapters if adapter.trouble is None}
    of_cycles = Counter(cycle.adapter for cycle in training.cycles if cycle.adapter)
    breaches = [
        named("cycles that failed", {f"{c.number} ({c.reason})" for c in training.cycles if c.outcome == "failed"}),
        named("cycles left open", {str(cycle.number) for cycle in training.cycles if cycle.outcome is None}),
        named("adapters of more than one cycle", repeated(of_cycles)),
        named("adapters that aren't whole", {f"{a.name} ({a.trouble})" for a in training.adapters if a.trouble}),
        named("adapters that no cycle published", there.keys() - published.keys()),
        named("published by a cycle and not there", published.keys() - there.keys()),
        named(
            "of another snapshot than their cycle's",
            {a.name for a in training.adapters if a.name in published and a.snapshot != published[a.name].snapshot},
        ),
        named(
            "of a snapshot that isn't there, or was changed",
            {a.name for a in training.adapters if a.trouble is None and a.snapshot not in training.snapshots},
        ),
        named("announced and not there as announced", {name for name, _ in set(training.announced) - digests}),
        *_of_the_last(training, there.keys() - {name for name, _ in training.announced}),
    ]
    return [breach for breach in breaches if breach]


def _of_the_last(training: Training, unannounced: set[str]) -> list[str]:
    """What the last cycle must have done: read everything, and announced what there was."""
    if not training.adapters:
        return ["no cycle published an adapter"]
    last = training.cycles[-1]
    found = []
    if last.snapshot != training.newest:
        found.append(f"the last cycle read snapshot {last.snapshot}, not {training.newest}, which has every vote")
    if last.outcome == "published":  # a trainer that has published announces whatever the topic doesn't hold
        found.append(named("published and never announced", unannounced))
    return found
