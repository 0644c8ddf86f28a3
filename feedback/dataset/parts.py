"""Part files: immutable batches of events, each named by its content, and the index of ids that they hold.

A part has the columns `id`, `kind` (a vote's choice, empty for a pair), `at_us` (time of the event, microseconds since
1970) and `event` (the very bytes that came from the event log), so nothing of what was sent is lost by storing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feedback.dataset.errors import DatasetCorrupt
from feedback.dataset.files import clear_stale, make_folder, write_file

PART_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("at_us", pa.int64(), nullable=False),
        pa.field("event", pa.binary(), nullable=False),
    ]
)


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
        self._kinds: dict[str, str] = {}
        self._indexed: set[str] = set()

    def kinds(self) -> dict[str, str]:
        """The kind of each id in any part; reads only parts that are new since the last call. Don't change it."""
        for path in self.paths():
            if path.name not in self._indexed:
                table = _read(path, ["id", "kind"])
                self._kinds.update(zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True))
                self._indexed.add(path.name)
        return self._kinds

    def paths(self) -> list[Path]:
        """Every whole part, in the order of names."""
        return sorted(self.folder.glob("*.parquet"))

    def append(self, rows: Sequence[PartRow]) -> Path | None:
        """Store the rows whose ids no part has, in a new part; None where there are none. Durable on return.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        known = self.kinds()
        fresh: dict[str, PartRow] = {}
        for row in rows:
            if row.id not in known:
                fresh.setdefault(row.id, row)
        if not fresh:
            return None
        data = _encode(list(fresh.values()))
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.parquet"
        write_file(path, data)
        self._kinds.update({row.id: row.kind for row in fresh.values()})
        self._indexed.add(path.name)
        return path

    def rows(self, paths: Sequence[Path]) -> Iterator[PartRow]:
        """Every row of the parts, repeats included.

        Raises:
            DatasetCorrupt: a part is not what its name says.
        """
        for path in paths:
            _verify(path)
            for row in _read(path, None).to_pylist():
                yield PartRow(**row)


def _encode(rows: Sequence[PartRow]) -> bytes:
    table = pa.table(
        {name: [getattr(row, name) for row in rows] for name in PART_SCHEMA.names},
        schema=PART_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return bytes(sink.getvalue())


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetCorrupt(
            f"{path} can't be read ({error}); move it away and run `hustings replay`: the ledger has its events"
        ) from error


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != path.stem:
        raise DatasetCorrupt(
            f"{path} was changed after it was written (sha256 {digest[:12]}…); move it away and run `hustings replay`: "
            "the ledger has its events"
        )
