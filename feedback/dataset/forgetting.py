"""Taking a voter's events out of the parts, and out of the snapshots that hold them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedback.contracts import DeadLetter, PairShown, ThumbGiven, VoteCast, VoterForgotten
from feedback.dataset import snapshots
from feedback.dataset.parts import PartGone, PartRow, PartStore, read_rows
from feedback.dataset.tombstones import Covering, ForgottenVoter, Tombstones


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a voter's events lie."""

    votes: PartStore
    pairs: PartStore
    thumbs: PartStore
    dead_letters: Path


def forget(event: VoterForgotten, stores: Stores, root: Path, tombstones: Tombstones) -> ForgottenVoter:
    """Write the tombstone, rewrite the parts without the voter, purge the snapshots that hold them; can be repeated.

    Raises:
        DatasetFull: no room; do it again when there is.
        DatasetCorrupt: a part was changed.
    """
    covering = Covering([event])

    def mine(row: PartRow, read: Callable[[bytes], bool]) -> bool:
        return event.voter.encode() in row.event and read(row.event)

    def my_vote(row: PartRow) -> bool:
        return mine(row, lambda raw: covering.vote(VoteCast.from_bytes(raw)))

    def my_pair(row: PartRow) -> bool:
        return mine(row, lambda raw: covering.pair(PairShown.from_bytes(raw)))

    def my_thumb(row: PartRow) -> bool:
        return mine(row, lambda raw: covering.thumb(ThumbGiven.from_bytes(raw)))

    gone_votes = _matching(stores.votes, my_vote)
    gone_pairs = _matching(stores.pairs, my_pair)
    holding = [
        folder
        for folder in snapshots.folders(root)
        if _holds(folder, event, {pair for ids in gone_pairs.values() for pair in ids})
    ]
    stone = tombstones.keep(
        ForgottenVoter(
            event=event,
            snapshots=tuple(folder.name for folder in holding),
            votes=len({vote for ids in gone_votes.values() for vote in ids}),
            pairs=len({pair for ids in gone_pairs.values() for pair in ids}),
        )
    )
    for store, matches in ((stores.votes, my_vote), (stores.pairs, my_pair), (stores.thumbs, my_thumb)):
        _take_out(store, matches)
    for folder in holding:
        snapshots.purge(folder)
    _take_out_letters(stores.dead_letters, event.voter)
    return stone


def _matching(store: PartStore, matches: Callable[[PartRow], bool]) -> dict[Path, list[str]]:
    """Ids of the matching events, by part."""
    while True:
        try:
            found = {path: [row.id for row in read_rows([path]) if matches(row)] for path in store.paths()}
        except PartGone:
            continue
        return {path: ids for path, ids in found.items() if ids}


def _take_out(store: PartStore, matches: Callable[[PartRow], bool]) -> None:
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


def _holds(folder: Path, event: VoterForgotten, pair_ids: set[str]) -> bool:
    """Whether a snapshot's tables have a row of the voter."""
    if snapshots.is_purged(folder):
        return False
    mine = [("voter", "=", event.voter), ("cast_at", "<=", event.until)]
    for table in ("preferences", "ties"):
        if pq.read_table(folder / f"{table}.parquet", columns=["vote_id"], filters=mine).num_rows:
            return True
    shown = snapshots.column(folder, ["prompts"], "pair_id")
    return bool(pc.any(pc.is_in(shown, value_set=snapshots.strings(sorted(pair_ids)))).as_py())
