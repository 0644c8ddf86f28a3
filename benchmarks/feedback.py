"""Curator and snapshots at many votes: seconds and memory, to show that the one grows in line and the other little.

    python -m benchmarks.feedback --votes 10000 --votes 100000

Synthetic votes on pairs of two 48-token answers go through the curator's own steps (read, tell apart, store, merge) in
batches of 500 on a fake broker, then into a snapshot, which is built twice and read through. Each size runs in a
process of its own; the memory is that process's peak.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from feedback.contracts import (
    PAIR_TOPIC,
    VOTE_TOPIC,
    Choice,
    CompletionRecord,
    Message,
    PairShown,
    Position,
    SamplingRecord,
    VoteCast,
)
from feedback.curator import sort_out
from feedback.dataset import Dataset
from feedback.event_log import StoredRecord

T = TypeVar("T")
BATCH = 500
PROMPT_TOKENS, ANSWER_TOKENS = 40, 48
START = datetime(2026, 1, 1, tzinfo=UTC)
CHOICES: tuple[Choice, ...] = ("a", "b", "a", "b", "tie", "both_bad")
SAMPLING = SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=ANSWER_TOKENS)


def main() -> None:
    """Run the sizes and print one line of JSON for each."""
    arguments = _arguments()
    if arguments.alone is not None:
        print(json.dumps(measure(arguments.alone, arguments.dir, arguments.shuffled)))
        return
    for votes in arguments.votes or [10_000, 100_000]:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
            command = [sys.executable, "-m", "benchmarks.feedback", "--alone", str(votes), "--dir", folder]
            subprocess.run(command + ["--shuffled"] * arguments.shuffled, check=True)


def measure(votes: int, folder: Path, shuffled: bool) -> dict[str, float | int | str]:
    """Seconds of each step and the peak memory, for this many votes."""
    making, curating = 0.0, 0.0
    dataset = Dataset(folder)
    for numbers in _batches(votes, shuffled):
        began = time.perf_counter()
        records = _records(numbers)
        made = time.perf_counter()
        batch = sort_out(records)
        new_pairs = dataset.unknown_pairs(pair.pair_id for pair in batch.pairs)
        new_votes = dataset.unknown_votes(vote.vote_id for vote in batch.votes)
        assert len(new_pairs) == len(new_votes) == len(numbers)
        dataset.append_pairs(batch.pairs)
        dataset.append_votes(batch.votes)
        dataset.merge_parts()
        making += made - began
        curating += time.perf_counter() - made
    curated = _peak_mib()
    manifest, building = _timed(dataset.build_snapshot)
    again, rebuilding = _timed(dataset.build_snapshot)
    assert again == manifest
    assert manifest.votes == manifest.prompts == votes
    read, reading = _timed(lambda: _read_through(dataset, manifest.id))
    assert read == votes
    opened, opening = _timed(lambda: Dataset(folder).count_new(manifest.id))
    assert opened.prompts == 0
    return {
        "votes": votes,
        "order": "shuffled" if shuffled else "as cast",
        "curate_s": round(curating, 1),
        "votes_curated_per_s": round(votes / curating),
        "build_s": round(building, 1),
        "rebuild_s": round(rebuilding, 1),
        "read_s": round(reading, 1),
        "open_and_count_s": round(opening, 1),
        "peak_mib_after_curating": curated,
        "peak_mib": _peak_mib(),
        "part_files": len(list(folder.glob("*/*.parquet"))),
        "dataset_mib": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) >> 20,
        "making_the_votes_s": round(making, 1),
    }


def _read_through(dataset: Dataset, snapshot_id: str) -> int:
    """As the trainer reads: token ids and outcomes, a batch at a time."""
    snapshot = dataset.load_snapshot(snapshot_id)
    columns = ["prompt_token_ids", "chosen_token_ids", "rejected_token_ids", "outcome", "weight"]
    return sum(len(batch) for name in ("preferences", "ties") for batch in snapshot.batches(name, columns))


def _batches(votes: int, shuffled: bool) -> Iterator[list[int]]:
    numbers = list(range(votes))
    if shuffled:
        random.Random(0).shuffle(numbers)
    for start in range(0, votes, BATCH):
        yield numbers[start : start + BATCH]


def _records(numbers: Sequence[int]) -> list[StoredRecord]:
    records = []
    for number in numbers:
        shown = synthetic_pair(number)
        vote = VoteCast(
            vote_id=f"vote_{_hex(number)}",
            pair=shown,
            voter=shown.voter,
            choice=CHOICES[number % len(CHOICES)],
            cast_at=shown.shown_at + timedelta(seconds=9),
        )
        for topic, value in ((PAIR_TOPIC, shown.to_bytes()), (VOTE_TOPIC, vote.to_bytes())):
            records.append(StoredRecord(topic, 0, number, b"key", value, 0))
    return records


def synthetic_pair(number: int) -> PairShown:
    """The pair of this number, always the same: a 40-token prompt, two answers of 48 tokens."""
    rng = random.Random(number)
    return PairShown(
        pair_id=f"pair_{_hex(number)}",
        conversation_id=f"conv_{_hex(number // 3)}",
        voter=f"v_{number % 2_000:024x}",
        messages=(Message(role="user", content=f"How do I keep bread number {number} fresh? " * 3),),
        completions=(_completion("a", rng), _completion("b", rng)),
        contenders="self-play",
        propensity=0.5,
        base_model="synthetic",
        prompt_token_ids=_ids(rng, PROMPT_TOKENS),
        shown_at=START + timedelta(seconds=number),
    )


def _completion(position: Position, rng: random.Random) -> CompletionRecord:
    ids = _ids(rng, ANSWER_TOKENS)
    return CompletionRecord(
        position=position,
        text=" ".join(f"word{one % 5_000}" for one in ids),
        finish_reason="stop",
        adapter=None if position == "a" else "policy-000001",
        sampling=SAMPLING,
        token_ids=ids,
        logprobs=tuple(-rng.random() * 5 for _ in ids),
    )


def _ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.choices(range(49_152), k=count))


def _hex(number: int) -> str:
    """Ids that say nothing about the order, as real ones."""
    return f"{random.Random(f'id {number}').getrandbits(128):032x}"


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, action="append", help="a size; repeatable (default: 10000 and 100000)")
    parser.add_argument("--shuffled", action="store_true", help="votes come in no order of time")
    parser.add_argument("--dir", type=Path, default=None, help="where the passing dataset lies")
    parser.add_argument("--alone", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
