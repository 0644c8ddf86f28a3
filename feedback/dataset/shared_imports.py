"""Rows that more than one import brought (adr/0093).

The parts hold such a row once, as the first import brought it. What the others would have stored waits here, so that
the row stays, under the next one's name, when the first import is taken back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import orjson

from feedback.contracts import PairShown, VoteCast
from feedback.dataset.ids import IdIndex
from feedback.dataset.parts import ROWS_AT_ONCE, PartGone, PartRow, PartStore, read_rows

PAIR_PREFIX = "pair_import_"


def import_of(pair: PairShown) -> str:
    """The name under which a pair was imported: its conversation is `import_NAME_DIGEST`."""
    return pair.conversation_id.removeprefix("import_").rpartition("_")[0]


def pair_of(row: PartRow) -> PairShown:
    """The pair of a waiting row."""
    return VoteCast.from_bytes(row.event).pair if row.kind else PairShown.from_bytes(row.event)


class Waiting:
    """What imports would have stored of rows that another one had brought.

    Args:
        folder: of these rows' own parts.
        pairs: where the first import's lie.
    """

    def __init__(self, folder: Path, pairs: PartStore) -> None:
        self.store = PartStore(folder)
        self._pairs = pairs
        self._brought: tuple[str, IdIndex] | None = None

    def keep(self, name: str, known: Sequence[PartRow], votes: Mapping[str, PartRow]) -> None:
        """Keep an import's rows whose pairs the parts have already, unless they have them from this very import.

        Args:
            known: the pairs.
            votes: on pairs, by the pairs' ids.

        Raises:
            DatasetFull: no room; nothing was stored.
            DatasetCorrupt: a part was changed.
        """
        if not known:
            return
        others = self._brought_by(name).unknown(row.id for row in known)
        kept = [(row.id, votes.get(row.id, row)) for row in known if row.id in others]
        self.store.append([PartRow(f"{pair_id}@{name}", row.kind, row.at_us, row.event) for pair_id, row in kept])

    def _brought_by(self, name: str) -> IdIndex:
        """Ids of the pairs that lie in the parts under an import's name, as of the last time that it was looked."""
        if self._brought is None or self._brought[0] != name or self._brought[1].lost:
            self._brought = (name, _brought_by(name, self._pairs))
        return self._brought[1]

    def look_anew(self) -> None:
        """Something was taken out of the parts."""
        self._brought = None

    def brings(self, name: str, fresh: Iterable[str]) -> None:
        """These pairs come into the parts under this name."""
        if self._brought is not None and self._brought[0] == name:
            self._brought[1].add((pair_id, "") for pair_id in fresh)


def _brought_by(name: str, pairs: PartStore) -> IdIndex:
    mine = re.compile(rb'"conversation_id":"' + re.escape(orjson.dumps(f"import_{name}_")[1:-1]) + rb'[0-9a-f]{24}"')
    while True:
        found = IdIndex()
        rows = (row for row in read_rows(pairs.paths()) if row.id.startswith(PAIR_PREFIX) and mine.search(row.event))
        try:
            found.add((row.id, "") for row in rows)
        except PartGone:  # merged into another one
            continue
        return found


def move_up(waiting: PartStore, pairs: PartStore, votes: PartStore) -> int:
    """Put waiting rows where no pair of theirs is left; returns how many. Can be repeated.

    A row's vote is stored before its pair, by whose absence the next call finds what a crash cut off.

    Raises:
        DatasetFull: no room; do it again when there is.
        DatasetCorrupt: a part was changed.
    """
    moved: set[str] = set()
    with waiting.locked():  # nobody merges what is read here
        for chunk in _chunks(read_rows(waiting.paths())):
            gone = pairs.ids().unknown(_pair_id(row) for row in chunk)
            first = {_pair_id(row): row for row in sorted(chunk, key=lambda row: row.id, reverse=True)}
            up = [row for pair_id, row in sorted(first.items()) if pair_id in gone]
            cast = [(row, VoteCast.from_bytes(row.event).vote_id) for row in up if row.kind]
            votes.append([PartRow(vote_id, row.kind, row.at_us, row.event) for row, vote_id in cast])
            pairs.append([PartRow(_pair_id(row), "", row.at_us, pair_of(row).to_bytes()) for row in up])
            moved |= {row.id for row in up}
        if moved:
            waiting.rewrite(waiting.paths(), lambda row: row.id not in moved)
    return len(moved)


def _pair_id(row: PartRow) -> str:
    return row.id.partition("@")[0]


def _chunks(rows: Iterator[PartRow]) -> Iterator[Sequence[PartRow]]:
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield chunk
