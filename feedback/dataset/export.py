"""A snapshot for others: Parquet, JSON Lines, or a folder that Hugging Face `datasets` and TRL load by its path."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedback.dataset.errors import DatasetError, from_os
from feedback.dataset.files import TEMPORARY_PREFIX
from feedback.dataset.snapshots import Snapshot, TableName

Format = Literal["parquet", "jsonl", "hf"]
_FILES = frozenset({".parquet", ".jsonl"})
"""Endings of a `dest` that is to be one file."""
TABLE_NAMES: tuple[TableName, ...] = ("preferences", "ties", "prompts")

_CARD = """---
configs:
- config_name: preferences
  default: true
  data_files:
  - split: train
    path: preferences/*.parquet
- config_name: ties
  data_files:
  - split: train
    path: ties/*.parquet
- config_name: prompts
  data_files:
  - split: train
    path: prompts/*.parquet
---
# Votes of a Hustings installation

Snapshot `{id}`: {decisive} comparisons with a winner (`preferences`), {undecided} without (`ties`, where `chosen` is
simply side a), {prompts} prompts. `prompt`, `chosen` and `rejected` are in the conversational preference format.
"""


def require_fit(dest: Path, format: Format) -> None:  # noqa: A002
    """Pass where `dest` is a place for this format.

    Raises:
        DatasetError: the format is unknown, or the name says another: it would become a folder, of other files.
    """
    if format not in get_args(Format):
        raise DatasetError(f"unknown export format {format!r}; choose parquet, jsonl or hf")
    if dest.suffix in _FILES and dest.suffix != f".{format}":
        raise DatasetError(
            f"{dest} ends in {dest.suffix}, and the format is {format}; "
            f"choose the format {dest.suffix[1:]} (--format), or another name"
        )


def export(snapshot: Snapshot, dest: Path, format: Format) -> None:  # noqa: A002
    """Write a snapshot's tables to `dest`.

    A `dest` that ends in .parquet or .jsonl becomes one file with the preferences; any other becomes a folder with
    preferences, ties and prompts.

    Raises:
        DatasetError: the format is unknown or another than the name says, or `dest` can't be written.
    """
    require_fit(dest, format)
    try:
        if format == "hf":
            _write_hf(snapshot, dest)
        elif dest.suffix == f".{format}":
            dest.parent.mkdir(parents=True, exist_ok=True)
            _write_table(snapshot, "preferences", dest, format)
        else:
            dest.mkdir(parents=True, exist_ok=True)
            for name in TABLE_NAMES:
                _write_table(snapshot, name, dest / f"{name}.{format}", format)
            (dest / "manifest.json").write_text(snapshot.manifest.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise from_os(error, dest) from error


def _write_hf(snapshot: Snapshot, dest: Path) -> None:
    for name in TABLE_NAMES:
        (dest / name).mkdir(parents=True, exist_ok=True)
        _write_table(snapshot, name, dest / name / "train-00000-of-00001.parquet", "hf")
    manifest = snapshot.manifest
    (dest / "README.md").write_text(
        _CARD.format(
            id=manifest.id,
            decisive=manifest.decisive,
            undecided=manifest.ties + manifest.both_bad,
            prompts=manifest.prompts,
        )
    )


def _write_table(snapshot: Snapshot, name: TableName, path: Path, kind: str) -> None:
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        if kind == "parquet":
            shutil.copyfile(snapshot.path(name), temporary)
        elif kind == "hf":
            _write_with_margins(snapshot, name, temporary)
        else:
            with temporary.open("wb") as file:
                file.writelines(_lines(snapshot, name))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_with_margins(snapshot: Snapshot, name: TableName, path: Path) -> None:
    """The table with 0 for a margin that nobody gave: TRL's RewardTrainer takes a number off, and fails on null."""
    with pq.ParquetFile(snapshot.path(name)) as table:
        column = table.schema_arrow.get_field_index("margin")
        with pq.ParquetWriter(path, table.schema_arrow, compression="zstd") as writer:
            for batch in table.iter_batches(1_000):
                filled = batch if column < 0 else batch.set_column(column, "margin", pc.fill_null(batch["margin"], 0.0))
                writer.write_batch(filled)


def _lines(snapshot: Snapshot, name: TableName) -> Iterator[bytes]:
    for batch in snapshot.batches(name):
        for row in batch.to_pylist():
            yield orjson.dumps(row) + b"\n"
