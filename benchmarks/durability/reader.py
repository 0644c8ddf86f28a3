"""Somebody who looks on while others are killed: builds a snapshot, loads it verified, reads it through, and sees that
every adapter that can be seen is whole; and again, for ever.

python -m benchmarks.durability.reader DATA_FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.durability.training import adapters
from feedback.config import VotersConfig
from feedback.dataset import Dataset
from feedback.paths import DataPaths
from feedback.voters import weigher

PAUSE_S = 1.0
"""Between two readings: the others need the processor."""


def main(folder: Path) -> None:
    """Read until killed; whatever is wrong ends it, which the harness reports as a fault."""
    paths = DataPaths(folder)
    while True:
        dataset = Dataset(paths.dataset, weigher(VotersConfig()))
        snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
        votes = sum(len(batch) for name in ("preferences", "ties") for batch in snapshot.batches(name))
        assert votes == snapshot.manifest.votes
        broken = [adapter for adapter in adapters(paths.adapters) if adapter.trouble is not None]
        assert not broken, f"adapters in sight that are not whole: {broken}"
        time.sleep(PAUSE_S)  # a rhythm of looking now and then: nothing is waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]))
