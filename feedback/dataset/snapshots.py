"""Snapshots: immutable, content-addressed tables made of the parts. Equal votes give equal bytes and an equal id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from feedback.contracts import PairShown, VoteCast
from feedback.dataset.errors import DatasetCorrupt, UnknownSnapshot
from feedback.dataset.files import folder_in_the_making, sha256_of
from feedback.dataset.parts import PartRow, PartStore
from feedback.dataset.rows import PROMPT_SCHEMA, VOTE_SCHEMA, is_decisive, prompt_row, vote_row

MANIFEST = "manifest.json"
PARTS = "parts.json"
TABLES = ("preferences.parquet", "ties.parquet", "prompts.parquet")
ROWS_AT_ONCE = 1_000


class SnapshotManifest(BaseModel):
    """`manifest.json` of a snapshot.

    Attributes:
        id: first 20 hex digits of the SHA-256 over the tables' digests.
        files: SHA-256 of each table, by file name.
        votes, decisive, ties, both_bad, prompts: how many rows.
        voters, conversations: how many different ones among the votes.
        adapters: how often each adapter ("base" for none) was on either side.
        filters: what was left out or folded, in words.
        from_time, to_time: of the first and the last vote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    id: str
    files: dict[str, str]
    votes: int
    decisive: int
    ties: int
    both_bad: int
    prompts: int
    voters: int
    conversations: int
    adapters: dict[str, int]
    filters: tuple[str, ...]
    from_time: datetime | None
    to_time: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in memory.

    Attributes:
        parts: names of the part files that it was made of (kept beside the manifest: they don't change the content).
    """

    manifest: SnapshotManifest
    preferences: pa.Table
    ties: pa.Table
    prompts: pa.Table
    parts: tuple[str, ...]


def build(votes: PartStore, pairs: PartStore, root: Path) -> SnapshotManifest:
    """Make a snapshot of every part that is there now; the same content again gives the same id and writes nothing.

    Raises:
        DatasetFull: no room; no trace is left.
        DatasetCorrupt: a part was changed.
    """
    vote_paths, pair_paths = votes.paths(), pairs.paths()
    kept_votes = once_each(votes.rows(vote_paths))
    kept_pairs = once_each(pairs.rows(pair_paths))
    decisive = [row for row in kept_votes if is_decisive(row.kind)]
    tied = [row for row in kept_votes if not is_decisive(row.kind)]
    with folder_in_the_making(root) as (folder, publish):
        _write(folder / TABLES[0], VOTE_SCHEMA, decisive, _vote)
        _write(folder / TABLES[1], VOTE_SCHEMA, tied, _vote)
        _write(folder / TABLES[2], PROMPT_SCHEMA, kept_pairs, _pair)
        manifest = _describe(folder, kept_votes)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        names = [path.name for path in (*vote_paths, *pair_paths)]
        (folder / PARTS).write_text(json.dumps(names, indent=1) + "\n")
        publish(manifest.id)
    return manifest


def load_manifest(folder: Path) -> SnapshotManifest:
    """Read a snapshot's manifest.

    Raises:
        UnknownSnapshot: there is none.
    """
    try:
        return SnapshotManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise UnknownSnapshot(f"no snapshot {folder.name} in {folder.parent}; build one, or name another") from error


def load(folder: Path) -> Snapshot:
    """Read a snapshot and check every table against the manifest.

    Raises:
        UnknownSnapshot: there is none.
        DatasetCorrupt: a table was changed.
    """
    manifest = load_manifest(folder)
    for name, digest in manifest.files.items():
        if sha256_of(folder / name) != digest:
            raise DatasetCorrupt(f"{folder / name} was changed; remove the folder and build the snapshot again")
    preferences, ties, prompts = (pq.read_table(folder / name) for name in TABLES)
    return Snapshot(manifest, preferences, ties, prompts, tuple(json.loads((folder / PARTS).read_text())))


def once_each(rows: Iterable[PartRow]) -> list[PartRow]:
    """One row an id, ordered by time and id: what two curators stored twice counts once, whichever is read first."""
    kept: dict[str, PartRow] = {}
    for row in rows:
        other = kept.get(row.id)
        if other is None or row.event < other.event:
            kept[row.id] = row
    return sorted(kept.values(), key=lambda row: (row.at_us, row.id))


def _vote(row: PartRow) -> dict[str, Any]:
    return vote_row(VoteCast.from_bytes(row.event))


def _pair(row: PartRow) -> dict[str, Any]:
    return prompt_row(PairShown.from_bytes(row.event))


def _write(path: Path, schema: pa.Schema, rows: Sequence[PartRow], as_row: Callable[[PartRow], dict[str, Any]]) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows):
            writer.write_table(pa.Table.from_pylist([as_row(row) for row in batch], schema=schema))


def _batches(rows: Sequence[PartRow]) -> Iterator[list[PartRow]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, ROWS_AT_ONCE)):
        yield batch


def _describe(folder: Path, votes: Sequence[PartRow]) -> SnapshotManifest:
    files = {name: sha256_of(folder / name) for name in TABLES}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    kinds = [row.kind for row in votes]
    columns = ["voter", "conversation_id", "chosen_adapter", "rejected_adapter"]
    tables = [pq.read_table(folder / name, columns=columns).to_pydict() for name in TABLES[:2]]
    every = {column: [value for table in tables for value in table[column]] for column in columns}
    spoke = [name or "base" for name in (*every["chosen_adapter"], *every["rejected_adapter"])]
    return SnapshotManifest(
        id=digest[:20],
        files=files,
        votes=len(votes),
        decisive=sum(is_decisive(kind) for kind in kinds),
        ties=kinds.count("tie"),
        both_bad=kinds.count("both_bad"),
        prompts=pq.read_metadata(folder / TABLES[2]).num_rows,
        voters=len(set(every["voter"])),
        conversations=len(set(every["conversation_id"])),
        adapters={name: spoke.count(name) for name in sorted(set(spoke))},
        filters=("one row a vote_id", "one prompt a pair_id"),
        from_time=_time(votes[0].at_us) if votes else None,
        to_time=_time(votes[-1].at_us) if votes else None,
    )


def _time(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
