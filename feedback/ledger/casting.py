"""Votes into the ledger: any number in one transaction, by a few statements, each vote standing and falling alone."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import Connection, Insert, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from feedback.comparisons import told as in_one_line
from feedback.contracts import VOTE_TOPIC, Choice, PairShown, Ranking, VoteCast, utc_now
from feedback.ledger import outbox
from feedback.ledger.errors import NotYourPair, UnfitVote, UnknownPair, VoteConflict
from feedback.ledger.tables import pairs, to_us, votes

_PAIRS = select(pairs.c.pair_id, pairs.c.conversation_id, pairs.c.voter, pairs.c.event).where(
    pairs.c.pair_id.in_(bindparam("pair_ids", expanding=True))
)
_EARLIER = select(votes.c.vote_id, votes.c.choice, votes.c.ranking, votes.c.event).where(
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
        halves: the pair's event and the vote's own half, as the ledger keeps them.
        sides: what its voter may now be told of the pair.
    """

    vote_id: str
    choice: Choice
    ranking: str | None
    created: bool
    halves: tuple[bytes, bytes]
    sides: tuple[Side, ...]

    @property
    def event(self) -> bytes:
        """The VoteCast's bytes on the wire; put together at each call."""
        return outbox.vote_bytes(*self.halves)

    @property
    def vote(self) -> VoteCast:
        """The vote; read from its bytes at each call."""
        return VoteCast.from_bytes(self.event)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A pair, as far as a vote needs it. The ledger checked it when it was shown; it is not checked again."""

    conversation_id: str
    voter: str
    event: bytes
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class _Vote:
    """A vote that is valid, with its row; whether another came first, the database will say."""

    draft: VoteDraft
    shown: _Shown
    row: dict[str, Any]

    def outcome(self, row: dict[str, Any], *, created: bool) -> VoteOutcome:
        halves = (self.shown.event, row["event"])
        return VoteOutcome(row["vote_id"], row["choice"], row["ranking"], created, halves, self.shown.sides)


def record_votes(connection: Connection, drafts: Sequence[VoteDraft]) -> list[VoteOutcome | Exception]:
    """Add votes with their outbox rows; one entry a draft, in their order: what became of it, or why it is refused.

    The unique constraint decides a race of two votes, within the drafts and beyond: the second insert does nothing, and
    finds the first. Refused are `UnknownPair`, `NotYourPair`, `UnfitVote`, `VoteConflict`, and pydantic's error where a
    vote breaks its contract.
    """
    shown = _shown(connection, {draft.pair_id for draft in drafts})
    now = utc_now()
    ids = _vote_ids(len(drafts))
    checked = [
        _checked(draft, shown.get(draft.pair_id), vote_id, now) for draft, vote_id in zip(drafts, ids, strict=True)
    ]
    valid = [vote for vote in checked if isinstance(vote, _Vote)]
    new = _insert(connection, [vote.row for vote in valid])
    outcomes = [
        vote if isinstance(vote, Exception) else _outcome(connection, vote, created=vote.row["vote_id"] in new)
        for vote in checked
    ]
    told = [
        outbox.row(outcome.vote_id, VOTE_TOPIC, vote.shown.conversation_id)
        for vote, outcome in zip(checked, outcomes, strict=True)
        if isinstance(vote, _Vote) and isinstance(outcome, VoteOutcome) and outcome.created
    ]
    outbox.enqueue_rows(connection, told)
    return outcomes


def _shown(connection: Connection, pair_ids: set[str]) -> dict[str, _Shown]:
    found = connection.execute(_PAIRS, {"pair_ids": sorted(pair_ids)})
    return {pair_id: _Shown(talk, voter, event, _sides(event)) for pair_id, talk, voter, event in found}


def _sides(event: bytes) -> tuple[Side, ...]:
    completions = orjson.loads(event)["completions"]
    return tuple(Side(one["position"], one["adapter"], one["sampling"]) for one in completions)


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
    row = {
        "vote_id": vote.vote_id,
        "pair_id": draft.pair_id,
        "voter": draft.voter,
        "choice": draft.choice,
        "ranking": draft.line,
        "cast_us": to_us(now),
        "event": vote.model_dump_json(exclude={"pair"}).encode(),
    }
    return _Vote(draft, shown, row)


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


def _insert(connection: Connection, rows: list[dict[str, Any]]) -> set[str]:
    """Insert the rows whose (pair, voter) is free; returns the ids of those that were inserted."""
    if not rows:
        return set()
    # In one order everywhere: two servings that insert the same keys wait for each other and never deadlock.
    rows = sorted(rows, key=lambda row: row["pair_id"])
    return set(connection.execute(_insert_new(connection.dialect.name), rows).scalars())


@cache
def _insert_new(dialect: str) -> Insert:
    # Drivers disagree on the row count of such an insert; what it returns is plain.
    insert = sqlite.insert(votes) if dialect == "sqlite" else postgresql.insert(votes)
    return insert.on_conflict_do_nothing().returning(votes.c.vote_id)


def _outcome(connection: Connection, vote: _Vote, *, created: bool) -> VoteOutcome | Exception:
    if created:
        return vote.outcome(vote.row, created=True)
    found = connection.execute(_EARLIER, {"pair": vote.draft.pair_id, "by": vote.draft.voter}).one()
    if (found.choice, found.ranking) != (vote.draft.choice, vote.draft.line):
        return VoteConflict(vote.draft.pair_id, found.vote_id, found.ranking or found.choice)
    return vote.outcome(found._asdict(), created=False)
