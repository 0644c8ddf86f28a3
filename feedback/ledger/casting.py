"""Votes into the ledger: any number in one transaction, by a few statements, each vote standing and falling alone."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, get_args

import orjson
from pydantic import ValidationError
from sqlalchemy import Connection, bindparam, select

from feedback.comparisons import told as in_one_line
from feedback.contracts import VOTE_TOPIC, Choice, PairShown, Position, Ranking, VoteCast, utc_now
from feedback.ledger import outbox, rows
from feedback.ledger.errors import NotYourPair, UnfitVote, UnknownPair, VoteConflict
from feedback.ledger.tables import pairs, to_us, votes

_PAIRS = select(pairs.c.pair_id, pairs.c.conversation_id, pairs.c.voter, pairs.c.event).where(
    pairs.c.pair_id.in_(bindparam("pair_ids", expanding=True))
)
_SIDE = ("position", "adapter", "sampling")
_SIDES = ", ".join(f"'$.completions[{number}].{name}'" for number in range(len(get_args(Position))) for name in _SIDE)
_PAIRS_IN_ONE = (
    "SELECT json_group_array(json_array(pair_id, conversation_id, voter, json_extract(CAST(event AS TEXT), {sides})))"
    " FROM pairs WHERE pair_id IN ({ids})"
)
"""The same on SQLite, as one row: what a vote needs of its pair is found there, off the interpreter's lock."""
_COLUMNS = ("vote_id", "pair_id", "voter", "choice", "ranking", "cast_us", "event")
_EARLIER = select(votes.c.vote_id, votes.c.choice, votes.c.ranking).where(
    votes.c.pair_id == bindparam("pair"), votes.c.voter == bindparam("by")
)


@dataclass(frozen=True, slots=True)
class VoteDraft:
    """What a voter says of a pair, before it is recorded."""

    pair_id: str
    voter: str
    choice: Choice
    reasons: tuple[str, ...] = ()
    comment: str | None = None
    edited: str | None = None
    dwell_ms: int | None = None
    ranking: Ranking | None = None

    @property
    def line(self) -> str | None:
        """The ranking in one line; answers in one place are in no order."""
        return None if self.ranking is None else in_one_line(tuple(tuple(sorted(place)) for place in self.ranking))


@dataclass(frozen=True, slots=True)
class Side:
    """Who gave one answer of a pair (None: the base), and the `SamplingRecord` that it was sampled with."""

    position: str
    adapter: str | None
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class VoteOutcome:
    """What became of a vote. `created` is False where the voter had cast just this vote before.

    Attributes:
        ranking: in one line, where it is one.
        sides: what its voter may now be told of the pair.
    """

    vote_id: str
    choice: Choice
    ranking: str | None
    created: bool
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A pair, as far as a vote needs it. The ledger checked it when it was shown; it is not checked again."""

    conversation_id: str
    voter: str
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class _Vote:
    """A vote that is valid, with its row; whether another came first, the database will say."""

    vote_id: str
    draft: VoteDraft
    shown: _Shown
    row: tuple[Any, ...]


def record_votes(connection: Connection, drafts: Sequence[VoteDraft]) -> list[VoteOutcome | Exception]:
    """Add votes with their outbox rows; one entry a draft, in their order: what became of it, or why it is refused.

    The unique constraint decides a race of two votes, within the drafts and beyond: the second insert does nothing, and
    finds the first. Refused are `UnknownPair`, `NotYourPair`, `UnfitVote`, `VoteConflict`, and pydantic's error where a
    vote breaks its contract.
    """
    shown = _shown(connection, sorted({draft.pair_id for draft in drafts}))
    now = utc_now()
    ids = _vote_ids(len(drafts))
    checked = [
        _checked(draft, shown.get(draft.pair_id), vote_id, now) for draft, vote_id in zip(drafts, ids, strict=True)
    ]
    new = _insert(connection, [vote for vote in checked if isinstance(vote, _Vote)])
    outcomes = [
        vote if isinstance(vote, Exception) else _outcome(connection, vote, created=vote.vote_id in new)
        for vote in checked
    ]
    told = [
        (vote.vote_id, VOTE_TOPIC, vote.shown.conversation_id)
        for vote in checked
        if isinstance(vote, _Vote) and vote.vote_id in new
    ]
    outbox.enqueue_kept(connection, told, now)
    return outcomes


def _shown(connection: Connection, pair_ids: Sequence[str]) -> dict[str, _Shown]:
    if connection.dialect.name != "sqlite":
        found = connection.execute(_PAIRS, {"pair_ids": pair_ids})
        return {pair_id: _Shown(talk, voter, _sides(event)) for pair_id, talk, voter, event in found}
    shown: dict[str, _Shown] = {}
    for ids in rows.chunks(pair_ids):
        statement = _PAIRS_IN_ONE.format(sides=_SIDES, ids=rows.marks(connection, len(ids)))
        for pair_id, talk, voter, told in orjson.loads(connection.exec_driver_sql(statement, tuple(ids)).scalar_one()):
            sides = zip(told[::3], told[1::3], told[2::3], strict=True)
            shown[pair_id] = _Shown(talk, voter, tuple(Side(*side) for side in sides if side[0] is not None))
    return shown


def _sides(event: bytes) -> tuple[Side, ...]:
    return tuple(Side(*(one[name] for name in _SIDE)) for one in orjson.loads(event)["completions"])


def _vote_ids(count: int) -> list[str]:
    """Ids that nobody can guess, by one call to the kernel: each lets go of the interpreter's lock."""
    digits = secrets.token_hex(16 * count)
    return [f"vote_{digits[start : start + 32]}" for start in range(0, len(digits), 32)]


def _checked(draft: VoteDraft, shown: _Shown | None, vote_id: str, now: datetime) -> _Vote | Exception:
    if shown is None:
        return UnknownPair(draft.pair_id)
    if shown.voter != draft.voter:
        return NotYourPair(draft.pair_id)
    if misfit := _misfit(draft, [side.position for side in shown.sides]):
        return misfit
    try:
        vote = VoteCast(
            schema_version=1 if draft.ranking is None else 2,
            vote_id=vote_id,
            pair=_pair_of("".join(side.position for side in shown.sides)),
            voter=draft.voter,
            choice=draft.choice,
            ranking=draft.ranking,
            reasons=draft.reasons,
            comment=draft.comment,
            edited=draft.edited,
            dwell_ms=draft.dwell_ms,
            cast_at=now,
        )
    except ValidationError as error:
        return error
    told = vote.model_dump_json(exclude={"pair"}).encode()
    row = (vote_id, draft.pair_id, draft.voter, draft.choice, draft.line, to_us(now), told)
    return _Vote(vote_id, draft, shown, row)


@cache
def _pair_of(positions: str) -> PairShown:
    """As much of a pair as a vote's contract looks at; the whole of it was checked when it was shown."""
    return PairShown.model_construct(completions=tuple(Side(one, None, {}) for one in positions))


def _misfit(draft: VoteDraft, positions: list[str]) -> UnfitVote | None:
    if draft.choice in {"tie", "both_bad"} and draft.ranking is None:
        return None
    if len(positions) == 2:
        fits = draft.ranking is None and draft.choice != "ranking"
    else:
        ranked = sorted(position for place in draft.ranking or () for position in place)
        fits = draft.choice == "ranking" and ranked == sorted(positions)
    return None if fits else UnfitVote(draft.pair_id, sorted(positions))


def _insert(connection: Connection, valid: list[_Vote]) -> set[str]:
    """Insert the votes whose (pair, voter) is free; returns the ids of those that were inserted."""
    ids = {vote.vote_id for vote in valid}
    # In one order everywhere: two servings that insert the same keys wait for each other and never deadlock.
    ordered = sorted(valid, key=lambda vote: vote.draft.pair_id)
    if rows.insert(connection, votes, _COLUMNS, [vote.row for vote in ordered], skip=True) == len(valid):
        return ids
    there = select(votes.c.vote_id).where(votes.c.vote_id.in_(ids))
    return set(connection.execute(there).scalars())


def _outcome(connection: Connection, vote: _Vote, *, created: bool) -> VoteOutcome | Exception:
    draft, sides = vote.draft, vote.shown.sides
    if created:
        return VoteOutcome(vote.vote_id, draft.choice, draft.line, created, sides)
    found = connection.execute(_EARLIER, {"pair": draft.pair_id, "by": draft.voter}).one()
    if (found.choice, found.ranking) != (draft.choice, draft.line):
        return VoteConflict(draft.pair_id, found.vote_id, found.ranking or found.choice)
    return VoteOutcome(found.vote_id, found.choice, found.ranking, created, sides)
