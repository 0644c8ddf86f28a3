"""What the trainer does with the dataset: build a snapshot, load it verified, read it through, and again, for ever.

python -m benchmarks.durability.reader DATASET_FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from feedback.config import VotersConfig
from feedback.dataset import Dataset
from feedback.voters import weigher

PAUSE_S = 1.0
"""Between two readings: a trainer isn't always at it, and the others need the processor."""


def main(folder: Path) -> None:
    """Read until killed; whatever the dataset raises ends it, which the harness reports as a fault."""
    while True:
        dataset = Dataset(folder, weigher(VotersConfig()))
        snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
        votes = sum(len(batch) for name in ("preferences", "ties") for batch in snapshot.batches(name))
        assert votes == snapshot.manifest.votes
        time.sleep(PAUSE_S)  # the rhythm of a trainer that reads now and then: nothing is waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]))
