"""The trainer's view of the dataset: votes and prompts as token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from feedback.dataset import Dataset, SnapshotPurged, Weigh
from train.demonstrations import Edit, read_edits
from train.errors import SnapshotGone
from train.reward.votes import Votes, read_votes


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
            SnapshotGone: somebody in it was forgotten.
        """

    def vote_ids(self, snapshot: str) -> frozenset[str]:
        """Ids of a snapshot's votes."""


class DatasetVotes:
    """`VotesSource` on the dataset's folder."""

    def __init__(self, root: Path, weigh: Weigh | None = None) -> None:
        self._dataset = Dataset(root, weigh)

    def freeze(self) -> str:
        """See `VotesSource`."""
        return self._dataset.build_snapshot().id

    def load(self, snapshot: str) -> TrainingData:
        """See `VotesSource`."""
        try:
            loaded = self._dataset.load_snapshot(snapshot)
        except SnapshotPurged as error:
            raise SnapshotGone(str(error)) from error
        preferences, ties = loaded.preferences.to_pylist(), loaded.ties.to_pylist()
        votes = read_votes(preferences, ties)
        shown = _prompts(row["prompt_token_ids"] for row in loaded.prompts.to_pylist())
        prompts = Prompts(shown or tuple(a.prompt_ids for a in votes.answers))
        return TrainingData(votes, prompts, read_edits((*preferences, *ties)))

    def vote_ids(self, snapshot: str) -> frozenset[str]:
        """See `VotesSource`."""
        return frozenset(self._dataset.vote_ids(snapshot))


def _prompts(rows: Iterable[list[int] | None]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for ids in rows if ids)
