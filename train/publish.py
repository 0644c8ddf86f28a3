"""Publishing an adapter: a folder that appears whole, under a name that is never used twice, and its announcement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from feedback.contracts import ADAPTER_TOPIC, AdapterManifest, AdapterPublished, ProbeRecord
from feedback.event_log import EventLog, EventLogUnavailable, OutgoingRecord
from train.files import appear, sha256, write_text

MANIFEST = "manifest.json"
_told = structlog.get_logger()


def next_name(adapters: Path, reserved: Iterable[str] = ()) -> str:
    """`policy-NNNNNN` one above every adapter that is there and every name that a cycle has reserved."""
    names = {path.name for path in adapters.glob("policy-*")} | set(reserved)
    numbers = [int(name.removeprefix("policy-")) for name in names if name.removeprefix("policy-").isdigit()]
    return f"policy-{max(numbers, default=0) + 1:06d}"


def published(adapters: Path) -> list[str]:
    """Names of whole adapters, oldest first."""
    return sorted(path.parent.name for path in adapters.glob(f"policy-*/{MANIFEST}"))


def publish(
    adapters: Path,
    name: str,
    save: Callable[[Path], None],
    *,
    parent: str | None,
    base_model: str,
    base_fingerprint: str,
    lora_rank: int,
    reward_model: str,
    snapshot: str,
    probes: Sequence[ProbeRecord],
    config: dict[str, Any],
    metrics: dict[str, float],
) -> Path:
    """Write the adapter's folder and manifest under a temporary name, sync, rename. A folder already there is kept.

    Args:
        adapters: `DataPaths.adapters`.
        name: reserved for this adapter alone.
        save: writes the PEFT files into a folder.
        parent, base_model, base_fingerprint, lora_rank: the manifest's, as are the rest.
    """

    def fill(work: Path) -> None:
        save(work)
        manifest = AdapterManifest(
            name=name,
            parent=parent,
            base_model=base_model,
            base_fingerprint=base_fingerprint,
            lora_rank=lora_rank,
            reward_model=reward_model,
            snapshot=snapshot,
            files={path.name: sha256(path) for path in sorted(work.iterdir())},
            probes=tuple(probes),
            config=config,
            metrics=metrics,
        )
        write_text(work / MANIFEST, manifest.model_dump_json(indent=1) + "\n")

    # one that is there was published before a crash: the same cycle, the same bits
    return appear(adapters / name, MANIFEST, fill)


def announcement(folder: Path) -> AdapterPublished:
    """The event that tells serving of a published folder."""
    record = json.loads((folder / MANIFEST).read_text())
    return AdapterPublished(
        name=folder.name,
        uri=folder.resolve().as_uri(),
        manifest_sha256=sha256(folder / MANIFEST),
        base_model=record["base_model"],
        published_at=record["created_at"],
    )


def announce_missing(log: EventLog, adapters: Path) -> list[str]:
    """Announce every adapter that the topic doesn't hold (never announced, or the broker forgot); returns their names.

    Raises:
        EventLogUnavailable: the broker can't be reached; try again later, nothing is lost.
    """
    names = published(adapters)
    if not names:
        return []
    log.ensure_topics([ADAPTER_TOPIC])
    known = _announced(log)
    records = [
        OutgoingRecord(topic=ADAPTER_TOPIC, key=event.name, value=event.to_bytes(), event_id=event.name)
        for event in _announcements(adapters, [name for name in names if name not in known])
    ]
    if records:
        producer = log.producer()
        try:
            failures = [error for error in producer.send(records) if error is not None]
        finally:
            producer.close()
        if failures:
            raise EventLogUnavailable(f"{len(failures)} of {len(records)} adapters not announced: {failures[0]}")
    return [record.event_id for record in records]


def _announcements(adapters: Path, names: Iterable[str]) -> Iterator[AdapterPublished]:
    for name in names:
        try:
            yield announcement(adapters / name)
        except (OSError, ValueError, KeyError, TypeError) as error:  # the others' turn; it is tried again
            _told.warning("adapter_not_announced", adapter=name, reason=f"its {MANIFEST} can't be read: {error}")


def _announced(log: EventLog) -> set[str]:
    consumer = log.consumer([ADAPTER_TOPIC], None)
    found: set[str] = set()
    try:
        while records := consumer.poll(timeout_s=1.0):
            found |= {record.key.decode() for record in records if record.key is not None and record.value is not None}
    finally:
        consumer.close()
    return found
