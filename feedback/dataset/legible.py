"""What is wrong with a file of a snapshot, told as `DatasetCorrupt`, with the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from feedback.dataset.errors import DatasetCorrupt


@contextmanager
def legible(folder: Path) -> Iterator[None]:
    """A snapshot's files are read inside; what is wrong with them is told as `DatasetCorrupt`."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, json.JSONDecodeError) as error:
        raise damaged(folder, error) from error


def damaged(path: Path, error: Exception) -> DatasetCorrupt:
    """The failure to read a file, or a folder's files."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
    return DatasetCorrupt(f"{path} can't be read ({why}); remove the snapshot's folder: the votes are in the parts")
