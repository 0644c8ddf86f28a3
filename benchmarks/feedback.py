"""Curator, snapshots and exports at many votes: the seconds grow in line, the memory little.

    python -m benchmarks.feedback --votes 10000 --votes 100000
    python -m benchmarks.feedback --votes 1000000 --keep DIR --seconds 400     again and again until it is done

Synthetic votes on pairs of two 48-token answers go through the curator's own steps (read, tell apart, store, merge) in
batches of 500, then into a snapshot, weighed as in production, which is built twice, read through, counted against and
exported. Each step is a process of its own, whose peak memory is noted. With `--keep` the dataset stays, steps that are
done are not done again, and curating ends after `--seconds` and goes on with the next call: a million votes take a
quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from feedback.config import VotersConfig
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
from feedback.dataset.export import Format
from feedback.event_log import StoredRecord
from feedback.voters.weights import weigher

T = TypeVar("T")
BATCH = 500
PROMPT_TOKENS, ANSWER_TOKENS = 40, 48
START = datetime(2026, 1, 1, tzinfo=UTC)
CHOICES: tuple[Choice, ...] = ("a", "b", "a", "b", "tie", "both_bad")
SAMPLING = SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=ANSWER_TOKENS)


def main() -> None:
    """Run the sizes and print one line of JSON for each."""
    arguments = _arguments()
    if arguments.step is not None:
        STEPS[arguments.step](arguments.votes[0], arguments.dir, arguments.shuffled, arguments.seconds)
        return
    for votes in arguments.votes or [10_000, 100_000]:
        with contextlib.ExitStack() as stack:
            folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.dir)))
            folder.mkdir(exist_ok=True)
            for step in (name for name in STEPS if name not in arguments.skip):
                if not _run(step, votes, folder, arguments):
                    break
            print(json.dumps(_record(folder)))


def _run(step: str, votes: int, folder: Path, arguments: argparse.Namespace) -> bool:
    """Do a step in a process of its own; True once it is done."""
    if not _record(folder).get(step, {}).get("done"):
        command = [sys.executable, "-m", "benchmarks.feedback", "--step", step, "--votes", str(votes)]
        command += ["--dir", str(folder), "--seconds", str(arguments.seconds)]
        subprocess.run(command + ["--shuffled"] * arguments.shuffled, check=True)
    return bool(_record(folder)[step]["done"])


def _record(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / "measured.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _note(folder: Path, step: str, **found: float | int | str | bool) -> None:
    record = _record(folder)
    before = record.get(step, {})
    peak = max(_peak_mib(), before.get("peak_mib", 0))
    record[step] = before | found | {"peak_mib": peak}
    (folder / "measured.json").write_text(json.dumps(record))


def curate(votes: int, folder: Path, shuffled: bool, seconds: float) -> None:
    """The curator's steps, from where the last call ended, for at most so many seconds."""
    before = _record(folder).get("curate", {})
    spent, processor = before.get("seconds", 0.0), before.get("cpu_s", 0.0)
    start, began = before.get("votes", 0), time.perf_counter()
    dataset = _dataset(folder)
    dataset.count_new(None)  # reads the ids of what is there already
    for numbers in _batches(votes, shuffled, start):
        records = _records(numbers)
        made, made_by = time.perf_counter(), time.process_time()
        batch = sort_out(records)
        new_pairs = dataset.unknown_pairs(pair.pair_id for pair in batch.pairs)
        new_votes = dataset.unknown_votes(vote.vote_id for vote in batch.votes)
        assert len(new_pairs) == len(new_votes) == len(numbers)
        dataset.append_pairs(batch.pairs)
        dataset.append_votes(batch.votes)
        dataset.merge_parts()
        spent += time.perf_counter() - made
        processor += time.process_time() - made_by
        start += len(numbers)
        if time.perf_counter() - began > seconds:
            break
    parts = len(list((folder / "dataset").glob("*/*.parquet")))
    order = "shuffled" if shuffled else "as cast"
    took = {"seconds": round(spent, 1), "cpu_s": round(processor, 1)}
    _note(folder, "curate", order=order, votes=start, part_files=parts, done=start == votes, **took)


def build(votes: int, folder: Path, shuffled: bool, seconds: float) -> None:
    """A snapshot."""
    manifest, took = _timed(_dataset(folder).build_snapshot)
    assert manifest.votes == manifest.prompts == votes
    _note(folder, "build", **took, id=manifest.id, done=True)


def rebuild(votes: int, folder: Path, shuffled: bool, seconds: float) -> None:
    """The same once more: it must be the same."""
    manifest, took = _timed(_dataset(folder).build_snapshot)
    assert manifest.id == _record(folder)["build"]["id"]
    _note(folder, "rebuild", **took, done=True)


def read(votes: int, folder: Path, shuffled: bool, seconds: float) -> None:
    """Verify a snapshot and read it through, as the trainer does."""
    dataset = _dataset(folder)
    found, took = _timed(lambda: _read_through(dataset, _record(folder)["build"]["id"]))
    assert found == votes
    _note(folder, "read", **took, done=True)


def count(votes: int, folder: Path, shuffled: bool, seconds: float) -> None:
    """Open a dataset and count what is new, as the waiting trainer does."""
    found, took = _timed(lambda: _dataset(folder).count_new(_record(folder)["build"]["id"]))
    assert found.prompts == found.decisive == 0
    _note(folder, "count", **took, done=True)


def export(votes: int, folder: Path, shuffled: bool, seconds: float) -> None:
    """Every format, one after the other."""
    dataset = _dataset(folder)
    snapshot = dataset.load_snapshot(_record(folder)["build"]["id"])
    took: dict[str, dict[str, float]] = {}
    for format_ in get_args(Format):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            took[format_] = _timed(partial(dataset.export, snapshot, Path(name) / "out", format_))[1]
    of = {f"{format_}_{unit}": value for format_, each in took.items() for unit, value in each.items()}
    _note(folder, "export", **of, done=True)


STEPS = {step.__name__: step for step in (curate, build, rebuild, read, count, export)}


def _dataset(folder: Path) -> Dataset:
    return Dataset(folder / "dataset", weigher(VotersConfig()))


def _read_through(dataset: Dataset, snapshot_id: str) -> int:
    """As the trainer reads: token ids and outcomes, a batch at a time."""
    snapshot = dataset.load_snapshot(snapshot_id)
    columns = ["prompt_token_ids", "chosen_token_ids", "rejected_token_ids", "outcome", "weight"]
    return sum(len(batch) for name in ("preferences", "ties") for batch in snapshot.batches(name, columns))


def _batches(votes: int, shuffled: bool, first: int) -> Iterator[list[int]]:
    numbers = list(range(votes))
    if shuffled:
        random.Random(0).shuffle(numbers)
    for start in range(first, votes, BATCH):
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


def _timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result; seconds by the clock, and of the processor, which tell more beside other work."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": round(time.perf_counter() - clock, 1),
        "cpu_s": round(time.process_time() - processor, 1),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, action="append", help="a size; repeatable (default: 10000 and 100000)")
    parser.add_argument("--shuffled", action="store_true", help="votes come in no order of time")
    parser.add_argument("--dir", type=Path, default=None, help="where the passing dataset lies")
    parser.add_argument("--keep", type=Path, help="a folder that stays, to go on in with the next call; one size only")
    parser.add_argument("--skip", choices=STEPS, action="append", default=[], help="leave a step out; repeatable")
    parser.add_argument("--seconds", type=float, default=1e9, help="curate no longer than this in one call")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
