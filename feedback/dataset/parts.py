"""Part files: immutable batches of events, each named by its content.

A part has the columns `id`, `kind` (a vote's choice, or that its pair was planted; empty for a pair), `at_us` (time of
the event, microseconds since 1970) and `event` (the very bytes that came from the event log), so nothing of what was
sent is lost by storing it.

Small parts are merged into larger ones now and then, so that their number stays small however slowly votes trickle in.
A merged part is whole before the ones that it replaces go: a crash between leaves events twice, and readers drop what
they see twice. A reader that listed a part which has gone since meets `PartGone` and begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedback.dataset.errors import DatasetCorrupt, DatasetError, from_os
from feedback.dataset.files import (
    TEMPORARY_PREFIX,
    clear_stale,
    discard,
    flush_folder,
    locked,
    make_folder,
    remove,
    sha256_of,
    write_file,
)
from feedback.dataset.ids import IdIndex

PART_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("at_us", pa.int64(), nullable=False),
        pa.field("event", pa.binary(), nullable=False),
    ]
)
ROWS_AT_ONCE = 1_000
FULL_ROWS = 65_536
"""A part with so many rows is merged no further."""
TIER = 16
"""Parts are of one tier when their numbers of rows lie between the same powers of this."""
MERGE_AT = 32
"""Parts of a tier that are merged into one."""


class PartGone(DatasetError):
    """A part was merged into another, or rewritten, since it was listed; list again."""


@dataclass(frozen=True, slots=True)
class PartRow:
    """One event of a part."""

    id: str
    kind: str
    at_us: int
    event: bytes


class PartStore:
    """The parts of one folder. Several processes may add to it; each sees the others' parts when it looks again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)
        clear_stale(folder)
        self._ids = IdIndex()
        self._rows: dict[str, int] = {}

    def ids(self) -> IdIndex:
        """The ids in any part; reads only parts that are new since the last call.

        A part that is gone was merged into others, which hold its ids. Where they don't, somebody took it away, because
        it was damaged, say: then all are read anew, for what it held must be taken again.
        """
        if self._ids.lost:
            self.read_ids_anew()
        again = 0
        while True:
            paths = self.paths()
            try:
                for path in paths:
                    if path.name not in self._rows:
                        self._rows[path.name], known = self._read_ids(path)
                        again += known
            except PartGone:
                continue
            there = {path.name for path in paths}
            gone = sum(rows for name, rows in self._rows.items() if name not in there)
            self._rows = {name: rows for name, rows in self._rows.items() if name in there}
            if gone <= again:
                return self._ids
            self.read_ids_anew()
            again = 0

    def read_ids_anew(self) -> None:
        """Forget which ids there are: some went from the parts."""
        self._ids = IdIndex()
        self._rows = {}

    def paths(self) -> list[Path]:
        """Every whole part, in the order of names.

        Listed until two listings agree: a folder of many files is read in pieces, and while parts are merged a single
        listing may show neither them nor the one that they went into (ext4, one in a hundred with 600 files).
        """
        found, before = sorted(self.folder.glob("*.parquet")), None
        while found != before:
            found, before = sorted(self.folder.glob("*.parquet")), found
        return found

    def locked(self) -> AbstractContextManager[None]:
        """Alone among all who put parts in the place of others, or lock this store for other reasons.

        Raises:
            DatasetFull: no right, or no room, to write.
        """
        return locked(self.folder)

    def append(self, rows: Sequence[PartRow]) -> Path | None:
        """Store the rows whose ids no part has, in a new part; None where there are none. Durable on return.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        unknown = self.ids().unknown(row.id for row in rows)
        fresh: dict[str, PartRow] = {}
        for row in rows:
            if row.id in unknown:
                fresh.setdefault(row.id, row)
        if not fresh:
            return None
        data = _encode(list(fresh.values()))
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.parquet"
        write_file(path, data)
        self._ids.add((row.id, row.kind) for row in fresh.values())
        self._rows[path.name] = len(fresh)
        return path

    def merge(self) -> int:
        """Merge small parts where there are many; returns how many went into larger ones.

        Raises:
            DatasetFull: no room; everything is as it was.
        """
        self.ids()
        merged = 0
        while group := self._group_to_merge():
            paths = [self.folder / name for name in group]
            with contextlib.suppress(PartGone), self.locked():  # gone: another process merged it
                self._merge(paths)
            self.ids()
            merged += len(group)
        return merged

    def rewrite(self, paths: Sequence[Path], keep: Callable[[PartRow], bool]) -> Path | None:
        """Put what is kept of these parts into one new part, each id once, and remove them; None where nothing is left.

        Raises:
            PartGone: one of them is gone; everything is as it was.
            DatasetFull: no room; everything is as it was.
        """
        return self._replace(paths, map(_table, _chunks(_once(filter(keep, read_rows(paths))))))

    def _merge(self, paths: Sequence[Path]) -> Path | None:
        """As `rewrite`, keeping all: where no id comes twice, rows needn't be looked at one by one."""
        ids = [batch["id"] for path in paths for batch in read_batches(path, ["id"])]
        if pc.count_distinct(pa.chunked_array(ids)).as_py() < sum(map(len, ids)):
            return self.rewrite(paths, lambda row: True)
        return self._replace(paths, _regrouped(_verified_batches(paths)))

    def _replace(self, paths: Sequence[Path], tables: Iterable[pa.Table]) -> Path | None:
        made = self._write_part(tables)
        for path in paths:
            if path != made:
                remove(path)
                self._rows.pop(path.name, None)  # `made` has what is kept of it
        flush_folder(self.folder)
        return made

    def _group_to_merge(self) -> list[str]:
        tiers: dict[int, list[str]] = {}
        for name, rows in sorted(self._rows.items()):
            if rows < FULL_ROWS:
                tiers.setdefault(_tier(rows), []).append(name)
        for names in tiers.values():
            group: list[str] = []
            for name in names:
                group.append(name)
                if sum(self._rows[member] for member in group) >= FULL_ROWS or len(group) == MERGE_AT:
                    return group if len(group) > 1 else []
        return []

    def _read_ids(self, path: Path) -> tuple[int, int]:
        """Rows of a part, and how many of them had been known."""
        rows = fresh = 0
        for batch in read_batches(path, ["id", "kind"]):
            fresh += self._ids.add(zip(batch["id"].to_pylist(), batch["kind"].to_pylist(), strict=True))
            rows += len(batch)
        return rows, rows - fresh

    def _write_part(self, tables: Iterable[pa.Table]) -> Path | None:
        temporary = self.folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        written = 0
        try:
            with pq.ParquetWriter(temporary, PART_SCHEMA, compression="zstd", use_dictionary=False) as writer:
                for table in tables:
                    writer.write_table(table)
                    written += len(table)
            if not written:
                return None
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            path = self.folder / f"{sha256_of(temporary)}.parquet"
            temporary.replace(path)
            flush_folder(self.folder)
        except OSError as error:
            raise from_os(error, self.folder) from error
        finally:
            discard(temporary)
        self._rows[path.name] = written
        return path


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A part's rows, some at a time.

    Raises:
        PartGone: it is gone since it was listed.
        DatasetCorrupt: it can't be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)
    except FileNotFoundError as error:
        raise PartGone(f"{path} was merged into another part; look again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetCorrupt(
            f"{path} can't be read ({error}); move it away and run `hustings replay`: the ledger has its events"
        ) from error


def read_rows(paths: Sequence[Path]) -> Iterator[PartRow]:
    """Every row of the parts, repeats included.

    Raises:
        PartGone: a part is gone since it was listed.
        DatasetCorrupt: a part is not what its name says.
    """
    for batch in _verified_batches(paths):
        yield from rows_of(batch)


def rows_of(batch: pa.RecordBatch) -> Iterator[PartRow]:
    """The rows of a batch."""
    columns = [batch[name].to_pylist() for name in PART_SCHEMA.names]
    return (PartRow(*values) for values in zip(*columns, strict=True))


def verify(path: Path) -> None:
    """Pass where a part's bytes are those that its name promises.

    Raises:
        PartGone: it is gone since it was listed.
        DatasetCorrupt: it was changed.
    """
    try:
        digest = sha256_of(path)
    except FileNotFoundError as error:
        raise PartGone(f"{path} was merged into another part; look again") from error
    if digest != path.stem:
        raise DatasetCorrupt(
            f"{path} was changed after it was written (sha256 {digest[:12]}…); move it away and run `hustings replay`: "
            "the ledger has its events"
        )


def _verified_batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        verify(path)
        yield from read_batches(path)


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows, so many at once, however many each batch has."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        while rows >= ROWS_AT_ONCE:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, ROWS_AT_ONCE)
            waiting, rows = table.slice(ROWS_AT_ONCE).to_batches(), rows - ROWS_AT_ONCE
    if rows:
        yield pa.Table.from_batches(waiting)


def _tier(rows: int) -> int:
    tier = 0
    while rows >= TIER:
        rows //= TIER
        tier += 1
    return tier


def _once(rows: Iterable[PartRow]) -> Iterator[PartRow]:
    """Drop a row whose very bytes came before; of one id with two contents both stay, for snapshots to judge."""
    seen: set[bytes] = set()
    for row in rows:
        digest = hashlib.sha256(row.id.encode() + b"\0" + row.event).digest()
        if digest not in seen:
            seen.add(digest)
            yield row


def _chunks(rows: Iterable[PartRow]) -> Iterator[list[PartRow]]:
    chunk: list[PartRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _table(rows: Sequence[PartRow]) -> pa.Table:
    return pa.table({name: [getattr(row, name) for row in rows] for name in PART_SCHEMA.names}, schema=PART_SCHEMA)


def _encode(rows: Sequence[PartRow]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(_table(rows), sink, compression="zstd", use_dictionary=False)
    return bytes(sink.getvalue())
