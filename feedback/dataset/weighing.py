"""The `weight` column of a snapshot's votes: written last, when every vote has been seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feedback.voters import Ballots

Weigh = Callable[[Ballots], NDArray[np.float64]]
"""Gives each of N ballots its weight in [0, 1]: (N,)."""
DECISIVE, TIED = "preferences.parquet", "ties.parquet"


def write_weights(folder: Path, ballots: Ballots, weigh: Weigh) -> None:
    """Put the weights into both tables of votes, a row group at a time; a table of ones stays as it is.

    Args:
        ballots: of all rows in the order in which they were written, decisive and tied ones mixed.
    """
    weights = weigh(ballots)
    for name, mine in ((DECISIVE, ballots.decisive), (TIED, ~ballots.decisive)):
        if (weights[mine] != 1).any():
            _rewrite(folder / name, weights[mine])


def _rewrite(path: Path, weights: NDArray[np.float64]) -> None:
    unweighed = path.rename(path.with_suffix(".unweighed"))
    with pq.ParquetFile(unweighed) as old, pq.ParquetWriter(path, old.schema_arrow, compression="zstd") as new:
        column = old.schema_arrow.get_field_index("weight")
        start = 0
        for number in range(old.num_row_groups):
            group = old.read_row_group(number)
            mine = pa.array(weights[start : start + len(group)])
            new.write_table(group.set_column(column, "weight", mine))
            start += len(group)
    unweighed.unlink()
