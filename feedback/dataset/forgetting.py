"""Taking voters' events, or an import, out of the parts, and out of the snapshots that hold them.

Serving, the command line and the curator may do so at the same time, one after the other (`Tombstones.locked`), while a
trainer builds a snapshot: it looks at the tombstones again when its snapshot is there, and we at the snapshots when the
tombstone is.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedback.contracts import ContractError, DeadLetter, PairShown, ThumbGiven, VoteCast, VoterForgotten, utc_now
from feedback.dataset import snapshots
from feedback.dataset.errors import DatasetCorrupt
from feedback.dataset.files import remove
from feedback.dataset.legible import legible
from feedback.dataset.parts import PartGone, PartRow, PartStore, read_rows
from feedback.dataset.shared_imports import PAIR_PREFIX, import_of, move_up, pair_of
from feedback.dataset.tombstones import Covering, ForgottenVoter, Tombstones, voters_in

_IMPORT = "import_"
Whose = Callable[[PartRow], str | None]
"""For whose sake a row is to go; None where it stays."""
Ids = dict[str, str]
"""Ids of rows that are to go, each with its voter."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a voter's events lie."""

    votes: PartStore
    pairs: PartStore
    thumbs: PartStore
    waiting: PartStore
    dead_letters: Path


@dataclass(frozen=True, slots=True)
class _Theirs:
    """Tells whose the rows of each store are, and whether a snapshot's votes tell it by the column `voter`."""

    vote: Whose
    pair: Whose
    thumb: Whose
    waiting: Whose
    by_column: bool


def forget(
    events: Sequence[VoterForgotten], stores: Stores, root: Path, tombstones: Tombstones
) -> list[ForgottenVoter]:
    """Write tombstones, rewrite the parts without the voters, purge the snapshots that hold them; can be repeated.

    However many voters they are, the parts are looked through once.

    Returns:
        A tombstone a voter, in the order of their first events.

    Raises:
        DatasetFull: no room; do it again when there is.
        DatasetCorrupt: a part was changed.
    """
    latest: dict[str, VoterForgotten] = {}
    for event in events:
        latest[event.voter] = max(latest.get(event.voter, event), event, key=lambda each: each.until)
    covering = Covering(latest.values())

    def named(row: PartRow) -> bool:
        return any(voter in latest for voter in voters_in(row.event))

    theirs = _Theirs(
        vote=lambda row: covering.whose_vote(VoteCast.from_bytes(row.event)) if named(row) else None,
        pair=lambda row: covering.whose_pair(PairShown.from_bytes(row.event)) if named(row) else None,
        thumb=lambda row: covering.whose_thumb(ThumbGiven.from_bytes(row.event)) if named(row) else None,
        waiting=lambda row: covering.whose_pair(pair_of(row)) if named(row) else None,
        by_column=True,
    )
    with tombstones.locked():
        for event in latest.values():
            tombstones.mark_unerased(event)
        stones = _take_away(list(latest.values()), theirs, stores, root, tombstones)
        _take_out_letters(stores.dead_letters, covering)
    return stones


def take_back(name: str, stores: Stores, root: Path, tombstones: Tombstones) -> ForgottenVoter | None:
    """Take out what was imported under a name, as a voter is forgotten; None where there never was such an import.

    Its tombstone is that of a voter `import_NAME`, whom no event names: lineage knows of it by that, and the same rows
    may be imported again. Rows that another import brought too stay, under that one's name.

    Raises:
        DatasetFull: no room; do it again when there is.
        DatasetCorrupt: a part was changed.
    """
    voter = f"{_IMPORT}{name}"

    def pair(row: PartRow) -> str | None:
        mine = row.id.startswith(PAIR_PREFIX) and import_of(PairShown.from_bytes(row.event)) == name
        return voter if mine else None

    def vote(row: PartRow) -> str | None:
        mine = row.id.startswith("vote_import_") and import_of(VoteCast.from_bytes(row.event).pair) == name
        return voter if mine else None

    def waiting(row: PartRow) -> str | None:
        return voter if import_of(pair_of(row)) == name else None

    event = VoterForgotten(event_id=f"taken_back_{uuid4().hex}", voter=voter, until=utc_now())
    with tombstones.locked():
        here = _Search(stores.pairs, pair).look() or _Search(stores.waiting, waiting).look()
        if not here and tombstones.of(voter) is None:
            return None
        theirs = _Theirs(vote, pair, thumb=lambda row: None, waiting=waiting, by_column=False)
        (stone,) = _take_away([event], theirs, stores, root, tombstones)
        for store in (stores.pairs, stores.votes):
            store.read_ids_anew()
        move_up(stores.waiting, stores.pairs, stores.votes)
    return stone


def is_import(voter: str) -> bool:
    """Whether a tombstone tells of an import that was taken back: no voter is named so."""
    return voter.startswith(_IMPORT)


def imports(pairs: PartStore, waiting: PartStore) -> Counter[str]:
    """How many pairs each import has brought that are here, by its name; one that two have brought counts for both."""
    stored = (PairShown.from_bytes(row.event) for row in read_rows(pairs.paths()) if row.id.startswith(PAIR_PREFIX))
    return Counter(map(import_of, chain(stored, map(pair_of, read_rows(waiting.paths())))))


def _take_away(
    events: Sequence[VoterForgotten], theirs: _Theirs, stores: Stores, root: Path, tombstones: Tombstones
) -> list[ForgottenVoter]:
    votes, pairs = _Search(stores.votes, theirs.vote), _Search(stores.pairs, theirs.pair)
    ids = votes.look() | pairs.look()
    damaged: dict[str, DatasetCorrupt] = {}
    gone_votes, gone_pairs = Counter(votes.ids.values()), Counter(pairs.ids.values())

    def holding() -> Mapping[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for folder in snapshots.folders(root):
            try:
                with legible(folder):
                    holders = _held(folder, ids, events if theirs.by_column else ())
            except DatasetCorrupt as error:  # all else first
                damaged[folder.name] = error
                continue
            for voter in holders:
                found[voter].append(folder.name)
        return found

    def keep(counted: bool) -> list[ForgottenVoter]:
        held = holding()
        return [
            tombstones.keep(
                ForgottenVoter(
                    event=event,
                    snapshots=tuple(held.get(event.voter, ())),
                    votes=gone_votes[event.voter] if counted else 0,
                    pairs=gone_pairs[event.voter] if counted else 0,
                )
            )
            for event in events
        ]

    keep(counted=True)
    for search in (votes, pairs, _Search(stores.thumbs, theirs.thumb), _Search(stores.waiting, theirs.waiting)):
        search.take_out()
    stones = keep(counted=False)  # with the snapshots that came while the tombstones did
    for name in sorted({name for stone in stones for name in stone.snapshots}):
        # Also those of an earlier time that a crash cut off: the parts tell no more what such a one held.
        if (root / name).is_dir() and name not in damaged:
            snapshots.purge(root / name)
    for error in damaged.values():
        raise error
    return stones


class _Search:
    """The rows of one store that are to go. Parts never change, so that each is looked at once."""

    def __init__(self, store: PartStore, whose: Whose) -> None:
        self._store = store
        self._whose = whose
        self._found: dict[Path, Ids] = {}
        self._looked: set[Path] = set()

    @property
    def ids(self) -> Ids:
        """What was found by the last look."""
        return {name: voter for ids in self._found.values() for name, voter in ids.items()}

    def look(self) -> Ids:
        """Look at the parts that are new since the last look; returns all that is to go."""
        while new := set(there := self._store.paths()) - self._looked:
            for path in sorted(new):
                try:
                    ids = {row.id: voter for row in read_rows([path]) if (voter := self._whose(row)) is not None}
                except PartGone:
                    continue
                self._looked.add(path)
                if ids:
                    self._found[path] = ids
        self._found = {path: ids for path, ids in self._found.items() if path in there}
        return self.ids

    def take_out(self) -> None:
        """Rewrite the parts until none holds such a row."""
        with self._store.locked():
            while self.look():
                for path in list(self._found):
                    self._store.rewrite([path], lambda row: self._whose(row) is None)


def _take_out_letters(folder: Path, covering: Covering) -> None:
    """Remove the dead letters of these voters."""
    for path in folder.glob("[!.]*.json"):
        raw = path.read_bytes()
        try:
            value = base64.b64decode(DeadLetter.from_bytes(raw).value or "")
        except (ContractError, binascii.Error):
            value = raw  # somebody's own file; it may name the voter too
        if covering.letter(value):
            remove(path)


def _held(folder: Path, ids: Ids, events: Sequence[VoterForgotten]) -> set[str]:
    """Whose rows a snapshot holds, or held before it was purged: by ids, and by the voters of its votes."""
    held: set[str] = set()
    wanted = pa.array(sorted(ids), pa.string())
    for name in ("vote_id", "pair_id"):
        there = snapshots.ids_in(folder, name)
        held |= {ids[one.as_py()] for one in there.filter(pc.is_in(there, value_set=wanted))}
    until = {event.voter: event.until for event in events}
    if until and not snapshots.is_purged(folder):
        mine = [("voter", "in", sorted(until))]
        for table in ("preferences", "ties"):
            try:
                cast = pq.read_table(folder / f"{table}.parquet", columns=["voter", "cast_at"], filters=mine)
            except FileNotFoundError:
                break  # it was purged in this moment
            held |= {row["voter"] for row in cast.to_pylist() if row["cast_at"] <= until[row["voter"]]}
    return held
