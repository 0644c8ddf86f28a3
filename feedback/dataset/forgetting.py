"""Taking a voter's events, or an import, out of the parts, and out of the snapshots that hold them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedback.contracts import DeadLetter, PairShown, ThumbGiven, VoteCast, VoterForgotten, utc_now
from feedback.dataset import snapshots
from feedback.dataset.parts import PartGone, PartRow, PartStore, read_rows
from feedback.dataset.tombstones import Covering, ForgottenVoter, Tombstones

Match = Callable[[PartRow], bool]
Filters = list[tuple[str, str, Any]]


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a voter's events lie."""

    votes: PartStore
    pairs: PartStore
    thumbs: PartStore
    dead_letters: Path


@dataclass(frozen=True, slots=True)
class _Mine:
    """Tells which rows of each store are to go, and whether a snapshot's table of votes holds such a one."""

    vote: Match
    pair: Match
    thumb: Match
    among_votes: Filters | None


def forget(event: VoterForgotten, stores: Stores, root: Path, tombstones: Tombstones) -> ForgottenVoter:
    """Write the tombstone, rewrite the parts without the voter, purge the snapshots that hold them; can be repeated.

    Raises:
        DatasetFull: no room; do it again when there is.
        DatasetCorrupt: a part was changed.
    """
    covering = Covering([event])

    def named(row: PartRow) -> bool:
        return event.voter.encode() in row.event

    mine = _Mine(
        vote=lambda row: named(row) and covering.vote(VoteCast.from_bytes(row.event)),
        pair=lambda row: named(row) and covering.pair(PairShown.from_bytes(row.event)),
        thumb=lambda row: named(row) and covering.thumb(ThumbGiven.from_bytes(row.event)),
        among_votes=[("voter", "=", event.voter), ("cast_at", "<=", event.until)],
    )
    stone = _take_away(event, mine, stores, root, tombstones)
    _take_out_letters(stores.dead_letters, event.voter)
    return stone


def take_back(name: str, stores: Stores, root: Path, tombstones: Tombstones) -> ForgottenVoter | None:
    """Take out what was imported under a name, as a voter is forgotten; None where there never was such an import.

    Its tombstone is that of a voter `import_NAME`, whom no event names: lineage knows of it by that, and the same rows
    may be imported again.

    Raises:
        DatasetFull: no room; do it again when there is.
        DatasetCorrupt: a part was changed.
    """

    def pair(row: PartRow) -> bool:
        return row.id.startswith("pair_import_") and import_of(PairShown.from_bytes(row.event)) == name

    def vote(row: PartRow) -> bool:
        return row.id.startswith("vote_import_") and import_of(VoteCast.from_bytes(row.event).pair) == name

    voter = f"import_{name}"
    if not _matching(stores.pairs, pair) and tombstones.of(voter) is None:
        return None
    event = VoterForgotten(event_id=f"taken_back_{uuid4().hex}", voter=voter, until=utc_now())
    mine = _Mine(vote, pair, thumb=lambda row: False, among_votes=None)
    return _take_away(event, mine, stores, root, tombstones)


def imports(pairs: PartStore) -> Counter[str]:
    """How many pairs each import has left here, by its name."""
    rows = read_rows(pairs.paths())
    return Counter(import_of(PairShown.from_bytes(row.event)) for row in rows if row.id.startswith("pair_import_"))


def import_of(pair: PairShown) -> str:
    """The name under which a pair was imported: its conversation is `import_NAME_DIGEST`."""
    return pair.conversation_id.removeprefix("import_").rpartition("_")[0]


def _take_away(
    event: VoterForgotten, mine: _Mine, stores: Stores, root: Path, tombstones: Tombstones
) -> ForgottenVoter:
    gone_votes = _matching(stores.votes, mine.vote)
    gone_pairs = _matching(stores.pairs, mine.pair)
    pair_ids = {pair for ids in gone_pairs.values() for pair in ids}
    holding = [folder for folder in snapshots.folders(root) if _holds(folder, mine.among_votes, pair_ids)]
    stone = tombstones.keep(
        ForgottenVoter(
            event=event,
            snapshots=tuple(folder.name for folder in holding),
            votes=len({vote for ids in gone_votes.values() for vote in ids}),
            pairs=len(pair_ids),
        )
    )
    for store, matches in ((stores.votes, mine.vote), (stores.pairs, mine.pair), (stores.thumbs, mine.thumb)):
        _take_out(store, matches)
    for folder in holding:
        snapshots.purge(folder)
    return stone


def _matching(store: PartStore, matches: Match) -> dict[Path, list[str]]:
    """Ids of the matching events, by part."""
    while True:
        try:
            found = {path: [row.id for row in read_rows([path]) if matches(row)] for path in store.paths()}
        except PartGone:
            continue
        return {path: ids for path, ids in found.items() if ids}


def _take_out(store: PartStore, matches: Match) -> None:
    """Rewrite parts until none holds a match: another curator may merge old ones meanwhile."""
    while holding := _matching(store, matches):
        for path in holding:
            try:
                store.rewrite([path], lambda row: not matches(row))
            except PartGone:
                continue


def _take_out_letters(folder: Path, voter: str) -> None:
    """Remove the dead letters that name the voter: records that couldn't be read, so nobody can tell their time."""
    for path in folder.glob("[!.]*.json"):
        letter = DeadLetter.from_bytes(path.read_bytes())
        if voter.encode() in base64.b64decode(letter.value or ""):
            path.unlink()


def _holds(folder: Path, among_votes: Filters | None, pair_ids: set[str]) -> bool:
    """Whether a snapshot's tables have a row that is to go."""
    if snapshots.is_purged(folder):
        return False
    for table in ("preferences", "ties") if among_votes else ():
        if pq.read_table(folder / f"{table}.parquet", columns=["vote_id"], filters=among_votes).num_rows:
            return True
    shown = snapshots.column(folder, ["prompts"], "pair_id")
    return bool(pc.any(pc.is_in(shown, value_set=snapshots.strings(sorted(pair_ids)))).as_py())
