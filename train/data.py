"""The trainer's view of the dataset: votes and prompts as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from feedback.contracts import GOLD_RULE
from feedback.dataset import Dataset, Snapshot, SnapshotDropped, SnapshotPurged, Weigh
from feedback.dataset.snapshots import TableName
from train.demonstrations import Edit, read_edits
from train.errors import SnapshotGone
from train.reward.votes import Votes, read_votes
from train.texts import TextReader

PROMPT_COLUMNS = ("prompt", "prompt_token_ids")
VOTE_COLUMNS = (
    *PROMPT_COLUMNS,
    *(f"{side}{what}" for side in ("chosen", "rejected") for what in ("", "_token_ids", "_finish_reason")),
    "vote_id",
    "conversation_id",
    "voter",
    "contenders",
    "outcome",
    "margin",
    "weight",
    "reasons",
    "edited",
)
"""What training reads; the rest of a row stays on the disk."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of a snapshot, voted on or not.

    Attributes:
        all: one entry a pair shown.
        distinct: each once, in the order first shown.
    """

    all: tuple[tuple[int, ...], ...]

    @property
    def distinct(self) -> tuple[tuple[int, ...], ...]:
        """Each prompt once."""
        return tuple(dict.fromkeys(self.all))


@dataclass(frozen=True, slots=True)
class TrainingData:
    """A loaded snapshot; `edits` are the voters' own better answers."""

    votes: Votes
    prompts: Prompts
    edits: tuple[Edit, ...] = ()


class VotesSource(Protocol):
    """Where a cycle gets its votes."""

    def freeze(self) -> str:
        """Make a snapshot of what there is; its id."""

    def load(self, snapshot: str) -> TrainingData:
        """Read a snapshot.

        Raises:
            NotEnoughVotes: it holds nothing usable.
            SnapshotGone: somebody in it was forgotten, or it is too old.
        """

    def vote_ids(self, snapshot: str) -> frozenset[str]:
        """Ids of a snapshot's votes."""


class DatasetVotes:
    """`VotesSource` on the dataset's folder."""

    def __init__(self, root: Path, weigh: Weigh | None = None, texts: TextReader | None = None) -> None:
        self._dataset = Dataset(root, weigh)
        self._texts = texts

    def freeze(self) -> str:
        """See `VotesSource`."""
        return self._dataset.build_snapshot().id

    def load(self, snapshot: str) -> TrainingData:
        """See `VotesSource`."""
        try:
            loaded = self._dataset.load_snapshot(snapshot)
        except (SnapshotPurged, SnapshotDropped) as error:
            raise SnapshotGone(str(error)) from error
        preferences, ties = self._rows(loaded, "preferences"), self._rows(loaded, "ties")
        votes = read_votes(preferences, ties)
        shown = _prompts(row["prompt_token_ids"] for row in self._rows(loaded, "prompts"))
        prompts = Prompts(shown or tuple(a.prompt_ids for a in votes.answers))
        return TrainingData(votes, prompts, read_edits((*preferences, *ties)))

    def _rows(self, snapshot: Snapshot, table: TableName) -> list[Mapping[str, Any]]:
        columns = PROMPT_COLUMNS if table == "prompts" else VOTE_COLUMNS
        # a planted pair's votes judge its voter: nothing is learnt from an answer whose words were jumbled
        rows: Iterator[Mapping[str, Any]] = (
            row
            for batch in snapshot.batches(table, list(columns))
            for row in batch.to_pylist()
            if row.get("contenders") != GOLD_RULE
        )
        if self._texts is None:
            return list(rows)
        return [self._texts.prompt(row) if table == "prompts" else self._texts.vote(row) for row in rows]

    def vote_ids(self, snapshot: str) -> frozenset[str]:
        """See `VotesSource`."""
        return frozenset(self._dataset.vote_ids(snapshot))


def _prompts(rows: Iterable[list[int] | None]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for ids in rows if ids)
