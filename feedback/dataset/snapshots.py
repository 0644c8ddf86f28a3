"""Snapshots: immutable, content-addressed tables made of the parts. Equal votes give equal bytes and an equal id."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from feedback.contracts import PairShown, VoteCast
from feedback.dataset.errors import DatasetCorrupt, SnapshotDropped, SnapshotPurged, UnknownSnapshot
from feedback.dataset.files import flush_folder, folder_in_the_making, remove, sha256_of, write_file
from feedback.dataset.legible import damaged, legible
from feedback.dataset.ordering import BUCKET_BYTES, in_order
from feedback.dataset.parts import PartGone, PartRow, PartStore
from feedback.dataset.rows import PROMPT_SCHEMA, VOTE_SCHEMA, is_decisive, prompt_row, vote_rows
from feedback.dataset.table_writer import ROWS_AT_ONCE, TableWriter
from feedback.dataset.tombstones import Covering
from feedback.dataset.weighing import Weigh, write_weights
from feedback.voters import BallotBox, ballots_of

MANIFEST = "manifest.json"
PARTS = "parts.json"
PURGED = "purged.parquet"
"""In place of the tables where somebody in them was forgotten: the ids of votes and pairs alone."""
DROPPED = "dropped.parquet"
"""The same where the tables of an old snapshot were dropped to have room."""
TABLES = ("preferences.parquet", "ties.parquet", "prompts.parquet")
ATTEMPTS = 10
"""Times that a build begins anew because the curator has merged parts meanwhile."""

TableName = Literal["preferences", "ties", "prompts"]


class SnapshotManifest(BaseModel):
    """`manifest.json` of a snapshot.

    Attributes:
        id: first 20 hex digits of the SHA-256 over the tables' digests.
        files: SHA-256 of each table, by file name.
        votes, prompts: how many there are.
        decisive, ties, both_bad: votes that name a winner, and those that say of all answers that they are as good, or
            as bad, as each other.
        comparisons: rows of the two tables of votes: a ranking is several, any other vote on a pair one. 0 where
            snapshots didn't tell yet.
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
    comparisons: int = 0
    prompts: int
    voters: int
    conversations: int
    adapters: dict[str, int]
    filters: tuple[str, ...]
    from_time: datetime | None
    to_time: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """A verified snapshot. The tables are read when they are asked for; `batches` reads any size in little memory.

    Attributes:
        folder: where it lies.
        parts: names of the part files that it was made of (kept beside the manifest: they don't change the content).
    """

    folder: Path
    manifest: SnapshotManifest
    parts: tuple[str, ...]

    @cached_property
    def preferences(self) -> pa.Table:
        """Votes with a winner, whole."""
        return pq.read_table(self.path("preferences"))

    @cached_property
    def ties(self) -> pa.Table:
        """Votes without a winner, whole."""
        return pq.read_table(self.path("ties"))

    @cached_property
    def prompts(self) -> pa.Table:
        """Every prompt shown, whole."""
        return pq.read_table(self.path("prompts"))

    def path(self, table: TableName) -> Path:
        """The file of a table."""
        return self.folder / f"{table}.parquet"

    def rows(self, table: TableName) -> int:
        """How many rows a table has; reads none."""
        found: int = pq.read_metadata(self.path(table)).num_rows
        return found

    def batches(
        self, table: TableName, columns: list[str] | None = None, rows: int = ROWS_AT_ONCE
    ) -> Iterator[pa.RecordBatch]:
        """A table's rows, some at a time."""
        with pq.ParquetFile(self.path(table)) as file:
            yield from file.iter_batches(rows, columns=columns)


def build(
    votes: PartStore,
    pairs: PartStore,
    root: Path,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    weigh: Weigh | None = None,
    forgotten: Covering | None = None,
) -> SnapshotManifest:
    """Make a snapshot of every part that is there now; the same content again gives the same id and writes nothing.

    Args:
        weigh: gives each vote its weight; None gives each 1.
        forgotten: tells the events that are left out.

    Raises:
        DatasetFull: no room; no trace is left.
        DatasetCorrupt: a part was changed.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return _build(
                votes, pairs, root, bucket_bytes=bucket_bytes, weigh=weigh, forgotten=forgotten or Covering(())
            )
        except PartGone:
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def _build(
    votes: PartStore, pairs: PartStore, root: Path, *, bucket_bytes: int, weigh: Weigh | None, forgotten: Covering
) -> SnapshotManifest:
    vote_paths, pair_paths = votes.paths(), pairs.paths()
    with folder_in_the_making(root) as (folder, publish):
        scratch = folder / "scratch"
        scratch.mkdir()
        box = BallotBox() if weigh else None
        cast = _write_votes(folder, in_order(vote_paths, scratch, bucket_bytes), box, forgotten)
        if weigh and box:
            write_weights(folder, box.ballots(), weigh)
        _write_prompts(folder, in_order(pair_paths, scratch, bucket_bytes), forgotten)
        shutil.rmtree(scratch)
        manifest = _describe(folder, cast)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        names = [path.name for path in (*vote_paths, *pair_paths)]
        (folder / PARTS).write_text(json.dumps(names, indent=1) + "\n")
        final = publish(manifest.id)
        if not is_whole(final):
            _give_back(folder, final)
    return manifest


def _give_back(made: Path, final: Path) -> None:
    """Put tables where they had been taken away: the same rows are there again (an import that was taken back, say)."""
    for name in TABLES:
        (made / name).replace(final / name)
    (final / MANIFEST).touch()  # it is as new as a new one
    flush_folder(final)
    for name in (DROPPED, PURGED):
        remove(final / name)
    flush_folder(final)


def load_manifest(folder: Path) -> SnapshotManifest:
    """Read a snapshot's manifest.

    Raises:
        UnknownSnapshot: there is none.
        DatasetCorrupt: it can't be read.
    """
    try:
        return SnapshotManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise UnknownSnapshot(f"no snapshot {folder.name} in {folder.parent}; build one, or name another") from error
    except (OSError, ValidationError) as error:
        raise damaged(folder / MANIFEST, error) from error


def load(folder: Path) -> Snapshot:
    """Check every table of a snapshot against the manifest.

    Raises:
        UnknownSnapshot: there is none.
        SnapshotPurged: it held votes of somebody who was forgotten.
        SnapshotDropped: it is old, and its tables were dropped.
        DatasetCorrupt: a table was changed.
    """
    manifest = load_manifest(folder)
    _require_tables(folder)
    try:
        with legible(folder):
            for name, digest in manifest.files.items():
                if sha256_of(folder / name) != digest:
                    raise DatasetCorrupt(f"{folder / name} was changed; remove the folder and build the snapshot again")
            return Snapshot(folder, manifest, tuple(json.loads((folder / PARTS).read_text())))
    except DatasetCorrupt:
        _require_tables(folder)  # taken away in this moment
        raise


def _require_tables(folder: Path) -> None:
    if is_purged(folder):
        raise SnapshotPurged(
            f"snapshot {folder.name} held votes of somebody who asked to be forgotten, and is gone; build a new one"
        )
    if is_dropped(folder):
        raise SnapshotDropped(
            f"the tables of snapshot {folder.name} were dropped, newer ones have their room; take a newer one, "
            "and keep more with train.schedule.keep_snapshots"
        )


def folders(root: Path) -> list[Path]:
    """Every snapshot below `root`, by id: purged ones too, and one that lost its manifest and still holds votes."""
    return sorted({path.parent for name in (MANIFEST, "*.parquet") for path in root.glob(f"[!.]*/{name}")})


def is_purged(folder: Path) -> bool:
    """Whether the tables went because somebody in them was forgotten."""
    return (folder / PURGED).is_file()


def is_dropped(folder: Path) -> bool:
    """Whether the tables went because newer snapshots have their room."""
    return (folder / DROPPED).is_file()


def is_whole(folder: Path) -> bool:
    """Whether its tables are there."""
    return not is_purged(folder) and not is_dropped(folder)


def purge(folder: Path) -> None:
    """Take the tables away for good; manifest and ids stay, so that lineage and counting go on.

    Raises:
        DatasetFull: no room; the snapshot is as it was.
    """
    _take_tables(folder, PURGED)
    remove(folder / DROPPED)


def drop_tables(folder: Path) -> None:
    """The same for want of room: nobody in it need have been forgotten.

    Raises:
        DatasetFull: no room even for the ids; the snapshot is as it was.
    """
    _take_tables(folder, DROPPED)


def _take_tables(folder: Path, ids_file: str) -> None:
    if not (folder / ids_file).is_file():
        ids = {"vote_id": ids_in(folder, "vote_id"), "pair_id": ids_in(folder, "pair_id")}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({name: [values.to_pylist()] for name, values in ids.items()}), sink, compression="zstd")
        write_file(folder / ids_file, sink.getvalue())
    for name in TABLES:
        remove(folder / name)
    flush_folder(folder)


def ids_in(folder: Path, name: Literal["vote_id", "pair_id"]) -> pa.ChunkedArray:
    """Ids of a snapshot's votes, or of its prompts, whether its tables are there or not.

    Raises:
        DatasetCorrupt: neither can be read.
    """
    tables: tuple[TableName, ...] = ("preferences", "ties") if name == "vote_id" else ("prompts",)
    for left in (True, False):
        kept = next((folder / file for file in (PURGED, DROPPED) if (folder / file).is_file()), None)
        try:
            with legible(folder):
                return column(folder, tables, name) if kept is None else _kept(kept, name)
        except DatasetCorrupt:  # or the tables, or the ids of dropped ones, were taken away in this moment
            if not left:
                raise
    raise AssertionError("the last look returns or raises")


def _kept(ids: Path, name: str) -> pa.ChunkedArray:
    return pq.read_table(ids, columns=[name])[name].combine_chunks().flatten()


def column(folder: Path, tables: Iterable[TableName], name: str) -> pa.ChunkedArray:
    """One column of some tables of a snapshot, one after the other."""
    chunks = [pq.read_table(folder / f"{table}.parquet", columns=[name])[name] for table in tables]
    return pa.chunked_array([chunk for column in chunks for chunk in column.chunks], type=chunks[0].type)


@dataclass(slots=True)
class _Cast:
    """What was seen of the votes on their way into the tables."""

    kinds: Counter[str] = field(default_factory=Counter)
    comparisons: int = 0
    first_us: int | None = None
    last_us: int | None = None

    def see(self, vote: VoteCast, row: PartRow) -> None:
        self.kinds[vote.choice] += 1
        self.first_us = row.at_us if self.first_us is None else self.first_us
        self.last_us = row.at_us


def _write_votes(folder: Path, rows: Iterable[PartRow], box: BallotBox | None, forgotten: Covering) -> _Cast:
    cast = _Cast()
    with ExitStack() as stack:
        decisive, tied = (stack.enter_context(TableWriter(folder / name, VOTE_SCHEMA)) for name in TABLES[:2])
        for row in rows:
            vote = VoteCast.from_bytes(row.event)
            if forgotten.vote(vote):
                continue
            cast.see(vote, row)
            for won, compared in vote_rows(vote):
                cast.comparisons += 1
                (decisive if won else tied).add(compared)
            if box is not None:
                for ballot in ballots_of(vote):
                    box.add(ballot)
    return cast


def _write_prompts(folder: Path, rows: Iterable[PartRow], forgotten: Covering) -> None:
    with TableWriter(folder / TABLES[2], PROMPT_SCHEMA) as prompts:
        for row in rows:
            pair = PairShown.from_bytes(row.event)
            # A prepared pair's prompt is there already: from where it was taken.
            if not forgotten.pair(pair) and pair.source == "chat":
                prompts.add(prompt_row(pair))


def _describe(folder: Path, cast: _Cast) -> SnapshotManifest:
    files = {name: sha256_of(folder / name) for name in TABLES}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    spoke: Counter[str] = Counter()
    for side in ("chosen_adapter", "rejected_adapter"):
        for counted in column(folder, ("preferences", "ties"), side).value_counts().to_pylist():
            spoke[counted["values"] or "base"] += counted["counts"]
    return SnapshotManifest(
        id=digest[:20],
        files=files,
        votes=cast.kinds.total(),
        decisive=sum(count for kind, count in cast.kinds.items() if is_decisive(kind)),
        ties=cast.kinds["tie"],
        both_bad=cast.kinds["both_bad"],
        comparisons=cast.comparisons,
        prompts=pq.read_metadata(folder / TABLES[2]).num_rows,
        voters=_different(folder, "voter"),
        conversations=_different(folder, "conversation_id"),
        adapters={name: spoke[name] for name in sorted(spoke)},
        filters=("each vote_id once", "one prompt a pair_id", "no forgotten voters"),
        from_time=None if cast.first_us is None else _time(cast.first_us),
        to_time=None if cast.last_us is None else _time(cast.last_us),
    )


def _different(folder: Path, name: str) -> int:
    found: int = pc.count_distinct(column(folder, ("preferences", "ties"), name)).as_py()
    return found


def _time(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
