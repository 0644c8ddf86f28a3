"""All events of the parts once each and in the order of time, in bounded memory and linear time.

Only ids and times are held at once (about 100 bytes an event). The events themselves are dealt out into buckets, each a
stretch of time that fits the memory, on the disk, and the buckets are sorted one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedback.dataset.parts import PART_SCHEMA, PartGone, PartRow, read_batches, read_rows, rows_of, verify

BUCKET_BYTES = 32 * 1024 * 1024
"""Bytes of events that are sorted in the memory at once."""
MOST_BUCKETS = 256
"""Files that are open at once."""


def in_order(paths: Sequence[Path], scratch: Path, bucket_bytes: int = BUCKET_BYTES) -> Iterator[PartRow]:
    """Every event of the parts once, the first first; the order and the choice among repeats follow from content alone.

    Args:
        paths: of parts.
        scratch: an empty folder for passing files, as large as the parts unpacked.
        bucket_bytes: what may be sorted in the memory at once.

    Raises:
        PartGone: a part was merged meanwhile: list the parts again and begin anew.
        DatasetCorrupt: a part was changed.
    """
    buckets = min(MOST_BUCKETS, 1 + sum(map(_event_bytes, paths)) // bucket_bytes)
    if buckets == 1:
        yield from once_each(read_rows(paths))
        return
    ranks, different = _ranks(paths)
    per_bucket = max(1, -(-different // buckets))
    files = _deal(paths, pc.divide(ranks, pa.scalar(per_bucket, ranks.type)), scratch)
    for _, file in sorted(files.items()):
        yield from once_each(_read_bucket(file))
        file.unlink()


def once_each(rows: Iterable[PartRow]) -> list[PartRow]:
    """One row an id, ordered by time and id: what two curators stored twice counts once, whichever is read first.

    Of two different events with one id the smaller bytes are kept, at the place of the earlier.
    """
    kept: dict[str, PartRow] = {}
    first: dict[str, int] = {}
    for row in rows:
        other = kept.get(row.id)
        first[row.id] = min(first.get(row.id, row.at_us), row.at_us)
        if other is None or row.event < other.event:
            kept[row.id] = row
    return sorted(kept.values(), key=lambda row: (first[row.id], row.id))


def _event_bytes(path: Path) -> int:
    """Bytes of a part's events, unpacked."""
    try:
        found = pq.read_metadata(path)
    except FileNotFoundError as error:
        raise PartGone(f"{path} was merged into another part; look again") from error
    except (pa.ArrowInvalid, OSError):
        return 0  # reading it will say what is wrong
    return sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))


def _ranks(paths: Sequence[Path]) -> tuple[pa.Array, int]:
    """For each row in the order of reading, the place of its id in the order of time; and how many ids there are."""
    batches: list[pa.RecordBatch] = []
    for path in paths:
        verify(path)
        batches += read_batches(path, ["id", "at_us"])
    keys = pa.Table.from_batches(batches).combine_chunks()
    order = keys.group_by("id").aggregate([("at_us", "min")]).sort_by([("at_us_min", "ascending"), ("id", "ascending")])
    ranks = pc.index_in(keys["id"], value_set=order["id"].combine_chunks())
    return ranks.combine_chunks() if isinstance(ranks, pa.ChunkedArray) else ranks, len(order)


def _deal(paths: Sequence[Path], bucket_of: pa.Array, scratch: Path) -> dict[int, Path]:
    """Copy every row into the file of its bucket; returns the files by bucket."""
    files: dict[int, Path] = {}
    read = 0
    with ExitStack() as stack:
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        for path in paths:
            for batch in read_batches(path):
                mine = bucket_of.slice(read, len(batch))
                read += len(batch)
                for bucket in pc.unique(mine).to_pylist():
                    if bucket not in writers:
                        files[bucket] = scratch / f"{bucket:04d}.arrow"
                        sink = stack.enter_context(pa.OSFile(str(files[bucket]), "wb"))
                        writers[bucket] = stack.enter_context(pa.ipc.new_stream(sink, PART_SCHEMA, options=_PACKED))
                    writers[bucket].write_batch(batch.filter(pc.equal(mine, bucket)))
    return files


def _read_bucket(path: Path) -> Iterator[PartRow]:
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            yield from rows_of(batch)


_PACKED = pa.ipc.IpcWriteOptions(compression="lz4")
