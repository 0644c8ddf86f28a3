"""Voters who asked to be forgotten, as the dataset keeps them: `forgotten/<voter>.json`, one file a voter.

The record is written before anything is taken away, and says which snapshots held events of the voter: so a crash in
the middle is finished by whoever comes next, and lineage knows which adapters were trained on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from feedback.contracts import PairShown, ThumbGiven, VoteCast, VoterForgotten
from feedback.dataset.errors import DatasetCorrupt
from feedback.dataset.files import locked, make_folder, remove, write_file

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_VOTER = b'"voter":'
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


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
        self._unerased = folder.with_name("unerased")
        self._read: dict[str, tuple[tuple[int, int, int], ForgottenVoter]] = {}

    def locked(self) -> AbstractContextManager[None]:
        """Alone among all who forget, in this process and others.

        Raises:
            DatasetFull: no right, or no room, to write.
        """
        make_folder(self._folder)
        return locked(self._folder)

    def every(self) -> list[ForgottenVoter]:
        """All, by pseudonym.

        Raises:
            DatasetCorrupt: one can't be read: nothing may go on as if its voter had not been forgotten.
        """
        paths = sorted(self._folder.glob("*.json"))
        for path in paths:
            found = path.stat()
            written = (found.st_mtime_ns, found.st_ino, found.st_size)  # two in one tick of the file system's clock
            if path.name not in self._read or self._read[path.name][0] != written:
                self._read[path.name] = (written, _tombstone(path))
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

    def mark_unerased(self, event: VoterForgotten) -> None:
        """Remember, durably, that the event log may hold records of this voter; where the tombstone is no news, not.

        Raises:
            DatasetFull: no room.
        """
        before = self.of(event.voter)
        if before is None or before.event.until < event.until:
            make_folder(self._unerased)
            write_file(self._unerased / hashlib.sha256(event.event_id.encode()).hexdigest(), event.voter.encode())

    def unerased(self) -> dict[str, float]:
        """What was marked, by name, with its Unix time."""
        found = {}
        for path in self._unerased.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # another curator was quicker
                found[path.name] = path.stat().st_mtime
        return found

    def erased(self, names: Iterable[str]) -> None:
        """Take these marks away."""
        for name in names:
            remove(self._unerased / name)

    def is_erased(self, voter: str) -> bool:
        """Whether no mark is left of this voter."""
        for name in self.unerased():
            with contextlib.suppress(FileNotFoundError):  # erased in this moment
                if (self._unerased / name).read_bytes() == voter.encode():
                    return False
        return True

    def covering(self) -> Covering:
        """What tells the events to be dropped, as of now."""
        return Covering(stone.event for stone in self.every())


def _file_stem(voter: str) -> str:
    """The voter's name where it can name a file: what came over the event log may hold anything, "../" too."""
    return voter if _PLAIN.fullmatch(voter) else hashlib.sha256(voter.encode()).hexdigest()


class Covering:
    """Tells whether an event is a forgotten voter's, and whose."""

    def __init__(self, events: Iterable[VoterForgotten]) -> None:
        self._until = {event.voter: event for event in events}

    def pair(self, pair: PairShown) -> bool:
        """Whether this pair is to be dropped."""
        return self.whose_pair(pair) is not None

    def vote(self, vote: VoteCast) -> bool:
        """Whether this vote is to be dropped, for its own sake or its pair's."""
        return self.whose_vote(vote) is not None

    def thumb(self, thumb: ThumbGiven) -> bool:
        """Whether this thumb is to be dropped, for its own sake or its answer's."""
        return self.whose_thumb(thumb) is not None

    def whose_pair(self, pair: PairShown) -> str | None:
        """For whose sake this pair is to be dropped; None where it is kept."""
        return self._whose(pair.voter, pair.shown_at)

    def whose_vote(self, vote: VoteCast) -> str | None:
        """The same of a vote."""
        return self.whose_pair(vote.pair) or self._whose(vote.voter, vote.cast_at)

    def whose_thumb(self, thumb: ThumbGiven) -> str | None:
        """The same of a thumb."""
        return self._whose(thumb.voter, thumb.given_at) or self._whose(thumb.voter, thumb.answer.shown_at)

    def letter(self, value: bytes) -> bool:
        """Whether a record that couldn't be read is to be dropped: it names a forgotten voter, and no later time."""
        if not self._until:
            return False
        told = _time_in(value)
        return any(
            (told is None or told <= event.until) and orjson.dumps(event.voter)[1:-1] in value
            for event in self._until.values()
        )

    def _whose(self, voter: str, at: datetime) -> str | None:
        event = self._until.get(voter)
        return voter if event is not None and event.covers(voter, at) else None


def _tombstone(path: Path) -> ForgottenVoter:
    try:
        return ForgottenVoter.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else error.errors(include_url=False)[0]["msg"]
        raise DatasetCorrupt(
            f"{path} can't be read ({why}), which names a forgotten voter: restore it, or remove it and run"
            f" `hustings forget {path.stem}` again"
        ) from error


def voters_in(event: bytes) -> list[str]:
    """Every voter that an event of ours names."""
    found, at = [], event.find(_VOTER)
    while at >= 0:
        name = _STRING.match(event, at + len(_VOTER))
        if name is not None:
            found.append(orjson.loads(name.group()))
        at = event.find(_VOTER, at + 1)
    return found


def _time_in(value: bytes) -> datetime | None:
    """The time that a wreck tells of itself, if it can be read."""
    try:
        wreck = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    for name in ("cast_at", "shown_at", "given_at") if isinstance(wreck, dict) else ():
        try:
            told = datetime.fromisoformat(wreck.get(name))
        except (TypeError, ValueError):
            continue
        return told if told.tzinfo is not None else None
    return None
