"""The dataset of one installation: parts that the curator adds, snapshots that training reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq

from feedback.contracts import DeadLetter, PairShown, VoteCast
from feedback.dataset import export as exporting
from feedback.dataset import snapshots
from feedback.dataset.errors import UnknownSnapshot
from feedback.dataset.files import clear_stale, make_folder, write_file
from feedback.dataset.parts import PartRow, PartStore
from feedback.dataset.rows import is_decisive
from feedback.dataset.snapshots import Snapshot, SnapshotManifest

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class NewData:
    """What came in since a snapshot. `ties` counts tie and both_bad."""

    decisive: int
    ties: int
    prompts: int


class Dataset:
    """Parts and snapshots below `root` (docs/architecture.md, "Data folder"). For one thread at a time.

    Raises:
        DatasetError: the folder can't be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._snapshots = root / "snapshots"
        make_folder(root)
        make_folder(self._snapshots)
        clear_stale(self._snapshots)
        self._votes = PartStore(root / "votes")
        self._pairs = PartStore(root / "pairs")
        self._known: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    def append_votes(self, events: Sequence[VoteCast]) -> Path | None:
        """Store votes that aren't stored yet in a new part, durable on return; None where all are.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        return self._votes.append(
            [PartRow(vote.vote_id, vote.choice, _micros(vote.cast_at), vote.to_bytes()) for vote in events]
        )

    def append_pairs(self, events: Sequence[PairShown]) -> Path | None:
        """Store pairs that aren't stored yet in a new part, durable on return; None where all are.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        return self._pairs.append(
            [PartRow(pair.pair_id, "", _micros(pair.shown_at), pair.to_bytes()) for pair in events]
        )

    def keep_dead_letter(self, letter: DeadLetter) -> Path:
        """Keep a record that could not be read, as `dead-letters/<digest>.json`; the same one again is kept once.

        Raises:
            DatasetFull: no room.
        """
        folder = self.root / "dead-letters"
        make_folder(folder)
        told_apart_by = f"{letter.topic}\n{letter.key}\n{letter.value}".encode()
        path = folder / f"{hashlib.sha256(told_apart_by).hexdigest()}.json"
        if not path.exists():
            write_file(path, letter.to_bytes() + b"\n")
        return path

    def has_vote(self, vote_id: str) -> bool:
        """Whether a part holds this vote."""
        return vote_id in self._votes.kinds()

    def has_pair(self, pair_id: str) -> bool:
        """Whether a part holds this pair."""
        return pair_id in self._pairs.kinds()

    def votes(self) -> list[VoteCast]:
        """Every stored vote once, in the order of time: what a replay from the parts sends."""
        rows = snapshots.once_each(self._votes.rows(self._votes.paths()))
        return [VoteCast.from_bytes(row.event) for row in rows]

    def pairs(self) -> list[PairShown]:
        """Every stored pair once, in the order of time."""
        rows = snapshots.once_each(self._pairs.rows(self._pairs.paths()))
        return [PairShown.from_bytes(row.event) for row in rows]

    def count_new(self, since: str | None) -> NewData:
        """How much the parts hold that the snapshot `since` (None: nothing) doesn't.

        Raises:
            UnknownSnapshot: there is no such snapshot.
        """
        votes_before, pairs_before = self._ids_of(since) if since is not None else (frozenset(), frozenset())
        kinds = [kind for vote_id, kind in self._votes.kinds().items() if vote_id not in votes_before]
        decisive = sum(is_decisive(kind) for kind in kinds)
        prompts = sum(pair_id not in pairs_before for pair_id in self._pairs.kinds())
        return NewData(decisive=decisive, ties=len(kinds) - decisive, prompts=prompts)

    def build_snapshot(self) -> SnapshotManifest:
        """Make a snapshot of everything stored; where nothing is new it is the last one again.

        Raises:
            DatasetFull: no room; no trace is left.
            DatasetCorrupt: a part was changed.
        """
        manifest = snapshots.build(self._votes, self._pairs, self._snapshots)
        write_file(self._snapshots / "LATEST", f"{manifest.id}\n".encode())
        return manifest

    def load_snapshot(self, snapshot_id: str) -> Snapshot:
        """Read a snapshot, verified.

        Raises:
            UnknownSnapshot: there is none of that id.
            DatasetCorrupt: a table was changed.
        """
        return snapshots.load(self._folder(snapshot_id))

    def latest_snapshot(self) -> SnapshotManifest | None:
        """The manifest of the snapshot built last, or None."""
        try:
            latest = (self._snapshots / "LATEST").read_text().strip()
        except FileNotFoundError:
            return None
        return snapshots.load_manifest(self._folder(latest))

    def export(self, snapshot: Snapshot, dest: Path, format: exporting.Format = "parquet") -> None:  # noqa: A002
        """Write a snapshot for others; see `feedback.dataset.export`."""
        exporting.export(snapshot, dest, format)

    def _folder(self, snapshot_id: str) -> Path:
        if not snapshot_id.isalnum():
            raise UnknownSnapshot(f"{snapshot_id!r} is no snapshot's id (20 hex digits)")
        return self._snapshots / snapshot_id

    def _ids_of(self, snapshot_id: str) -> tuple[frozenset[str], frozenset[str]]:
        """Ids of a snapshot's votes and pairs; it never changes, so they are read once."""
        if snapshot_id not in self._known:
            folder = self._folder(snapshot_id)
            snapshots.load_manifest(folder)
            preferences, ties, prompts = snapshots.TABLES
            votes = [
                vote_id
                for name in (preferences, ties)
                for vote_id in pq.read_table(folder / name, columns=["vote_id"])["vote_id"].to_pylist()
            ]
            pairs = pq.read_table(folder / prompts, columns=["pair_id"])["pair_id"].to_pylist()
            self._known = {snapshot_id: (frozenset(votes), frozenset(pairs))}
        return self._known[snapshot_id]


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
