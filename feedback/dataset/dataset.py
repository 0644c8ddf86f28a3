"""The dataset of one installation: parts that the curator adds, snapshots that training reads."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feedback.contracts import DeadLetter, PairShown, ThumbGiven, VoteCast, VoterForgotten
from feedback.dataset import export as exporting
from feedback.dataset import forgetting, snapshots
from feedback.dataset.errors import UnknownSnapshot
from feedback.dataset.exported import Exported, places_of, remember
from feedback.dataset.files import clear_stale, folder_in_the_making, make_folder, write_file
from feedback.dataset.ids import IdIndex
from feedback.dataset.ordering import in_order
from feedback.dataset.part_rows import pair_row, thumb_row, vote_row
from feedback.dataset.parts import PartGone, PartRow, PartStore
from feedback.dataset.rows import is_decisive
from feedback.dataset.shared_imports import Waiting
from feedback.dataset.snapshots import Snapshot, SnapshotManifest
from feedback.dataset.survey import Unreadable, holding, manifests
from feedback.dataset.tombstones import Covering, ForgottenVoter, Tombstones
from feedback.dataset.weighing import Weigh


@dataclass(frozen=True, slots=True)
class NewData:
    """What came in since a snapshot.

    Attributes:
        decisive: votes that name a winner, planted pairs aside: what there is to learn from.
        ties: all other votes.
    """

    decisive: int
    ties: int
    prompts: int


class Dataset:
    """Parts and snapshots below `root` (docs/architecture.md, "Data folder"). For one thread at a time.

    Args:
        weigh: gives the votes of a snapshot their weights; None gives each 1.

    Raises:
        DatasetError: the folder can't be made.
    """

    def __init__(self, root: Path, weigh: Weigh | None = None) -> None:
        self.root = root
        self._weigh = weigh
        self._snapshots = root / "snapshots"
        make_folder(root)
        make_folder(self._snapshots)
        clear_stale(self._snapshots)
        self._votes = PartStore(root / "votes")
        self._pairs = PartStore(root / "pairs")
        self._thumbs = PartStore(root / "thumbs")
        self._waiting = Waiting(root / "imports", self._pairs)
        self._tombstones = Tombstones(root / "forgotten")
        self._obeyed = self._tombstones.every()
        self._counted: tuple[str | None, IdIndex, IdIndex] | None = None

    def append_votes(self, events: Sequence[VoteCast]) -> Path | None:
        """Store votes that aren't stored yet in a new part, durable on return.

        Returns None where all are, or their voters were forgotten.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        return self._store(self._votes, lambda gone: [vote_row(vote) for vote in events if not gone.vote(vote)])

    def append_pairs(self, events: Sequence[PairShown]) -> Path | None:
        """Store pairs that aren't stored yet in a new part, durable on return.

        Returns None where all are, or their voters were forgotten.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        return self._store(self._pairs, lambda gone: [pair_row(pair) for pair in events if not gone.pair(pair)])

    def append_import(self, name: str, pairs: Sequence[PairShown], votes: Sequence[VoteCast]) -> int:
        """`append_pairs` and `append_votes` for an import, and what to keep of rows that another import brought before.

        Returns:
            How many pairs were new.

        Raises:
            DatasetFull: no room; importing again goes on.
            DatasetCorrupt: a part was changed.
        """
        new = self.unknown_pairs(pair.pair_id for pair in pairs)
        forgotten = self._tombstones.covering()
        known = [pair_row(pair) for pair in pairs if pair.pair_id not in new and not forgotten.pair(pair)]
        self._waiting.keep(name, known, {vote.pair.pair_id: vote_row(vote) for vote in votes})
        self.append_pairs(pairs)
        self.append_votes(votes)
        self._waiting.brings(name, new)
        return len(new)

    def append_thumbs(self, events: Sequence[ThumbGiven]) -> Path | None:
        """Store thumbs that aren't stored yet in a new part, durable on return.

        Returns None where all are, or their voters were forgotten.

        Raises:
            DatasetFull: no room; nothing was stored.
        """
        return self._store(self._thumbs, lambda gone: [thumb_row(one) for one in events if not gone.thumb(one)])

    def forget(self, event: VoterForgotten) -> ForgottenVoter:
        """Take a voter out of parts and snapshots, and take their events never again; doing it twice does no harm.

        Snapshots that held them lose their tables; manifest and ids stay. A new snapshot is without them.

        Raises:
            DatasetFull: no room; do it again when there is.
            DatasetCorrupt: a part was changed.
        """
        (stone,) = self.forget_all([event])
        return stone

    def forget_all(self, events: Sequence[VoterForgotten]) -> list[ForgottenVoter]:
        """`forget` for any number of voters, at the cost of one; a tombstone a voter, in the order of the first events.

        Raises:
            DatasetFull, DatasetCorrupt: as of `forget`.
        """
        stones = forgetting.forget(events, self._stores(), self._snapshots, self._tombstones)
        self._notice_tombstones()
        return stones

    def take_back(self, name: str) -> ForgottenVoter | None:
        """Take an import out of parts and snapshots, as a voter is forgotten; None where there never was such a one.

        Raises:
            DatasetFull: no room; do it again when there is.
            DatasetCorrupt: a part was changed.
        """
        stone = forgetting.take_back(name, self._stores(), self._snapshots, self._tombstones)
        self._notice_tombstones()
        return stone

    def imports(self) -> Mapping[str, int]:
        """The imports, and how many pairs here each has brought."""
        return forgetting.imports(self._pairs, self._waiting.store)

    def covering(self) -> Covering:
        """What tells the events that are dropped because their voters were forgotten."""
        return self._tombstones.covering()

    def forgotten(self) -> list[ForgottenVoter]:
        """Every voter who was forgotten, with the snapshots that had held them."""
        return self._tombstones.every()

    def unerased(self) -> dict[str, float]:
        """Marks of forgotten voters whose records the event log may still hold, each with its Unix time."""
        return self._tombstones.unerased()

    def erased(self, marks: Iterable[str]) -> None:
        """The event log holds nothing more of these."""
        self._tombstones.erased(marks)

    def is_erased(self, voter: str) -> bool:
        """Whether the event log holds nothing more of a forgotten voter, as far as is known."""
        return self._tombstones.is_erased(voter)

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
        return vote_id in self._votes.ids()

    def has_pair(self, pair_id: str) -> bool:
        """Whether a part holds this pair."""
        return pair_id in self._pairs.ids()

    def unknown_votes(self, vote_ids: Iterable[str]) -> set[str]:
        """Those of the ids that no part holds."""
        return self._votes.ids().unknown(vote_ids)

    def unknown_pairs(self, pair_ids: Iterable[str]) -> set[str]:
        """Those of the ids that no part holds."""
        return self._pairs.ids().unknown(pair_ids)

    def unknown_thumbs(self, thumb_ids: Iterable[str]) -> set[str]:
        """Those of the ids that no part holds."""
        return self._thumbs.ids().unknown(thumb_ids)

    def merge_parts(self) -> int:
        """Merge small parts where there are many, so that reading stays quick; returns how many were merged.

        Raises:
            DatasetFull: no room; everything is as it was.
        """
        return sum(store.merge() for store in (self._votes, self._pairs, self._thumbs, self._waiting.store))

    def votes(self) -> Iterator[VoteCast]:
        """Every stored vote once, in the order of time: what a replay from the parts sends."""
        forgotten = self._tombstones.covering()
        votes = (VoteCast.from_bytes(row.event) for row in self._stored(self._votes))
        return (vote for vote in votes if not forgotten.vote(vote))

    def pairs(self) -> Iterator[PairShown]:
        """Every stored pair once, in the order of time."""
        forgotten = self._tombstones.covering()
        pairs = (PairShown.from_bytes(row.event) for row in self._stored(self._pairs))
        return (pair for pair in pairs if not forgotten.pair(pair))

    def thumbs(self) -> Iterator[ThumbGiven]:
        """Every stored thumb once, in the order of time."""
        forgotten = self._tombstones.covering()
        thumbs = (ThumbGiven.from_bytes(row.event) for row in self._stored(self._thumbs))
        return (thumb for thumb in thumbs if not forgotten.thumb(thumb))

    def count_new(self, since: str | None) -> NewData:
        """How much the parts hold that the snapshot `since` (None: nothing) doesn't.

        Raises:
            UnknownSnapshot: there is no such snapshot.
        """
        self._notice_tombstones()
        votes, pairs = self._votes.ids(), self._pairs.ids()
        if self._counted != (since, votes, pairs):
            votes.set_old([] if since is None else self.vote_ids(since))
            pairs.set_old([] if since is None else self._ids_in(since, "pair_id"))
            self._counted = (since, votes, pairs)
        kinds = votes.news()
        decisive = sum(count for kind, count in kinds.items() if is_decisive(kind))
        return NewData(decisive=decisive, ties=sum(kinds.values()) - decisive, prompts=sum(pairs.news().values()))

    def vote_ids(self, snapshot_id: str) -> Iterator[str]:
        """Ids of a snapshot's votes.

        Raises:
            UnknownSnapshot: there is no such snapshot.
        """
        return self._ids_in(snapshot_id, "vote_id")

    def snapshots(self) -> list[SnapshotManifest]:
        """Manifests of every snapshot that can be read, purged ones too, by id."""
        return self.survey()[0]

    def survey(self) -> tuple[list[SnapshotManifest], Unreadable]:
        """The same, and which can't be read."""
        return manifests(self._snapshots)

    def snapshots_with(self, vote_id: str) -> list[str]:
        """Ids of the snapshots that hold a vote, of those that can be read."""
        return self.survey_for(vote_id)[0]

    def survey_for(self, vote_id: str) -> tuple[list[str], Unreadable]:
        """The same, and which can't be read."""
        return holding(self._snapshots, vote_id)

    def build_snapshot(self) -> SnapshotManifest:
        """Make a snapshot of everything stored; where nothing is new it is the last one again.

        Raises:
            DatasetFull: no room; no trace is left.
            DatasetCorrupt: a part was changed.
        """
        while True:
            stones = self._tombstones.every()
            before = {folder.name: snapshots.is_whole(folder) for folder in snapshots.folders(self._snapshots)}
            forgotten = Covering(stone.event for stone in stones)
            manifest = snapshots.build(
                self._votes, self._pairs, self._snapshots, weigh=self._weigh, forgotten=forgotten
            )
            if self._tombstones.every() == stones:
                break
            # Somebody was forgotten meanwhile, perhaps too late for this one, and too soon to find it.
            if manifest.id not in before:
                shutil.rmtree(self._snapshots / manifest.id, ignore_errors=True)
            elif not before[manifest.id]:
                snapshots.purge(self._snapshots / manifest.id)
        write_file(self._snapshots / "LATEST", f"{manifest.id}\n".encode())
        return manifest

    def drop_old_tables(self, newest: int, keep: Collection[str] = ()) -> list[str]:
        """Drop the tables of all but the newest snapshots, and those to keep; manifests and ids stay, as the votes do.

        Every snapshot is a copy of all votes: a small installation's would fill its disk in some weeks.

        Returns:
            Ids of those that lost their tables.

        Raises:
            DatasetFull: no room even for the ids.
        """
        there = [one for one in snapshots.folders(self._snapshots) if (one / snapshots.MANIFEST).is_file()]
        whole = [one for one in there if snapshots.is_whole(one)]
        by_age = sorted(whole, key=lambda folder: (folder / snapshots.MANIFEST).stat().st_mtime_ns, reverse=True)
        last = self._latest()
        old = [folder for folder in by_age[newest:] if folder.name != last and folder.name not in keep]
        for folder in old:
            snapshots.drop_tables(folder)
        return [folder.name for folder in old]

    def load_snapshot(self, snapshot_id: str) -> Snapshot:
        """Read a snapshot, verified.

        Raises:
            UnknownSnapshot: there is none of that id.
            DatasetCorrupt: a table was changed.
        """
        return snapshots.load(self._folder(snapshot_id))

    def latest_snapshot(self) -> SnapshotManifest | None:
        """The manifest of the snapshot built last, or None."""
        latest = self._latest()
        return None if latest is None else snapshots.load_manifest(self._folder(latest))

    def export(self, snapshot: Snapshot, dest: Path, format: exporting.Format = "parquet") -> None:  # noqa: A002
        """Write a snapshot for others, and remember where; see `feedback.dataset.export`."""
        exporting.require_fit(dest, format)
        remember(self.root, Exported(snapshot=snapshot.manifest.id, dest=str(dest.absolute()), format=format))
        exporting.export(snapshot, dest, format)

    def exports_of(self, snapshot_ids: Collection[str]) -> tuple[str, ...]:
        """Where these snapshots were exported to, from this dataset."""
        return places_of(self.root, snapshot_ids)

    def _store(self, store: PartStore, rows: Callable[[Covering], list[PartRow]]) -> Path | None:
        stones = self._tombstones.every()
        path = store.append(rows(Covering(stone.event for stone in stones)))
        late = [stone.event for stone in self._tombstones.every() if stone not in stones]
        if path is not None and late:  # whoever forgot them may have looked for their events before this part was there
            self.forget_all(late)
        return path

    def _latest(self) -> str | None:
        try:
            return (self._snapshots / "LATEST").read_text().strip()
        except FileNotFoundError:
            return None

    def _stores(self) -> forgetting.Stores:
        return forgetting.Stores(
            self._votes, self._pairs, self._thumbs, self._waiting.store, self.root / "dead-letters"
        )

    def _notice_tombstones(self) -> None:
        """Ids that went with a forgotten voter, here or in another process, must not be counted any more."""
        stones = self._tombstones.every()
        if stones != self._obeyed:
            self._obeyed = stones
            self._votes.read_ids_anew()
            self._pairs.read_ids_anew()
            self._waiting.look_anew()

    def _folder(self, snapshot_id: str) -> Path:
        if not snapshot_id.isalnum():
            raise UnknownSnapshot(f"{snapshot_id!r} is no snapshot's id (20 hex digits)")
        return self._snapshots / snapshot_id

    def _ids_in(self, snapshot_id: str, column: Literal["vote_id", "pair_id"]) -> Iterator[str]:
        folder = self._folder(snapshot_id)
        snapshots.load_manifest(folder)
        return (name.as_py() for name in snapshots.ids_in(folder, column))

    def _stored(self, store: PartStore) -> Iterator[PartRow]:
        for left in reversed(range(snapshots.ATTEMPTS)):
            with folder_in_the_making(self._snapshots) as (scratch, _):
                rows = in_order(store.paths(), scratch)
                try:
                    first = next(rows, None)  # by then every part has been read
                except PartGone:
                    if not left:
                        raise
                    continue
                if first is not None:
                    yield first
                    yield from rows
                return
