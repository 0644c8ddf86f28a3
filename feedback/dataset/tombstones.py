"""Voters who asked to be forgotten, as the dataset keeps them: `forgotten/<voter>.json`, one file a voter.

The record is written before anything is taken away, and says which snapshots held events of the voter: so a crash in
the middle is finished by whoever comes next, and lineage knows which adapters were trained on them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from feedback.contracts import PairShown, ThumbGiven, VoteCast, VoterForgotten
from feedback.dataset.files import make_folder, write_file

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class ForgottenVoter(BaseModel):
    """A tombstone, and what it took away here.

    Attributes:
        snapshots: ids of those that held events of the voter.
        votes, pairs: how many events the parts held.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    event: VoterForgotten
    snapshots: tuple[str, ...] = ()
    votes: int = 0
    pairs: int = 0


class Tombstones:
    """The tombstones of one dataset; each look sees what other processes added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[int, ForgottenVoter]] = {}

    def every(self) -> list[ForgottenVoter]:
        """All, by pseudonym."""
        paths = sorted(self._folder.glob("*.json"))
        for path in paths:
            changed = path.stat().st_mtime_ns
            if self._read.get(path.name, (0, None))[0] != changed:
                self._read[path.name] = (changed, ForgottenVoter.model_validate_json(path.read_bytes()))
        return [self._read[path.name][1] for path in paths]

    def of(self, voter: str) -> ForgottenVoter | None:
        """This voter's, or None."""
        return next((stone for stone in self.every() if stone.event.voter == voter), None)

    def keep(self, stone: ForgottenVoter) -> ForgottenVoter:
        """Write a tombstone; one that is there already is added to, and of two the later time counts.

        Raises:
            DatasetFull: no room.
        """
        make_folder(self._folder)
        before = self.of(stone.event.voter)
        if before is not None:
            later = max(stone.event, before.event, key=lambda event: event.until)
            stone = ForgottenVoter(
                event=later,
                snapshots=tuple(sorted({*before.snapshots, *stone.snapshots})),
                votes=before.votes + stone.votes,
                pairs=before.pairs + stone.pairs,
            )
        if stone != before:
            write_file(
                self._folder / f"{_file_stem(stone.event.voter)}.json", stone.model_dump_json(indent=1).encode() + b"\n"
            )
        return stone

    def covering(self) -> Covering:
        """What tells the events to be dropped, as of now."""
        return Covering(stone.event for stone in self.every())


def _file_stem(voter: str) -> str:
    """The voter's name where it can name a file: what came over the event log may hold anything, "../" too."""
    return voter if _PLAIN.fullmatch(voter) else hashlib.sha256(voter.encode()).hexdigest()


class Covering:
    """Tells whether an event is a forgotten voter's."""

    def __init__(self, events: Iterable[VoterForgotten]) -> None:
        self._until = {event.voter: event for event in events}

    def pair(self, pair: PairShown) -> bool:
        """Whether this pair is to be dropped."""
        event = self._until.get(pair.voter)
        return event is not None and event.covers(pair.voter, pair.shown_at)

    def vote(self, vote: VoteCast) -> bool:
        """Whether this vote is to be dropped, for its own sake or its pair's."""
        event = self._until.get(vote.voter)
        return self.pair(vote.pair) or (event is not None and event.covers(vote.voter, vote.cast_at))

    def thumb(self, thumb: ThumbGiven) -> bool:
        """Whether this thumb is to be dropped, for its own sake or its answer's."""
        event = self._until.get(thumb.voter)
        return event is not None and (
            event.covers(thumb.voter, thumb.given_at) or event.covers(thumb.voter, thumb.answer.shown_at)
        )
