"""Votes as columns: the little of each that reliability, position bias and standings look at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from feedback.contracts import PairShown, VoteCast
from feedback.voters.leaks import names_itself

A, B, NEITHER = 0, 1, 2
"""Codes of a choice; tie and both_bad are `NEITHER`."""
BASE = "base"
NO_GOLD = -1
_CODES = {"a": A, "b": B}


class Ballot(NamedTuple):
    """One vote, light.

    Attributes:
        adapter_a, adapter_b: who spoke; "base" for none.
        choice: `A`, `B` or `NEITHER`.
        gold: `A` or `B` where that answer was known to be the better one, else `NO_GOLD`.
        leak: whether an answer gave away who it is.
        prompt: a digest of the conversation, to find repeats by.
        length_a, length_b: characters of the answers.
        shown_ms, cast_ms: Unix time of both by the server's clock, milliseconds.
    """

    vote_id: str
    pair_id: str
    voter: str
    adapter_a: str
    adapter_b: str
    choice: int
    gold: int
    leak: bool
    prompt: int
    length_a: int
    length_b: int
    shown_ms: int
    cast_ms: int


def ballot_of(vote: VoteCast) -> Ballot:
    """What a vote's ballot holds."""
    pair = vote.pair
    sides = {completion.position: completion for completion in pair.completions}
    a, b = sides["a"], sides["b"]
    return Ballot(
        vote_id=vote.vote_id,
        pair_id=pair.pair_id,
        voter=vote.voter,
        adapter_a=a.adapter or BASE,
        adapter_b=b.adapter or BASE,
        choice=_CODES.get(vote.choice, NEITHER),
        gold=NO_GOLD if pair.gold is None else _CODES.get(pair.gold, NO_GOLD),
        leak=any(names_itself(side.text, pair.base_model) for side in (a, b)),
        prompt=_prompt(pair),
        length_a=len(a.text),
        length_b=len(b.text),
        shown_ms=int(pair.shown_at.timestamp() * 1000),
        cast_ms=int(vote.cast_at.timestamp() * 1000),
    )


def _prompt(pair: PairShown) -> int:
    said = "\x1e".join(f"{message.role}\x1f{message.content}" for message in pair.messages)
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(frozen=True, slots=True, eq=False)
class Ballots:
    """N ballots as columns, in the order given.

    Attributes:
        voters, adapters: names; `voter`, `left` and `right` are their numbers here.
        left, right: adapters of the answers a and b.
        choice: `A`, `B`, `NEITHER`.
        gold: `A`, `B`, `NO_GOLD`.
    """

    voters: tuple[str, ...]
    adapters: tuple[str, ...]
    voter: NDArray[np.int32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    choice: NDArray[np.int8]
    gold: NDArray[np.int8]
    leak: NDArray[np.bool_]
    prompt: NDArray[np.int64]
    length_a: NDArray[np.int32]
    length_b: NDArray[np.int32]
    shown_ms: NDArray[np.int64]
    cast_ms: NDArray[np.int64]

    @classmethod
    def of(cls, ballots: Iterable[Ballot]) -> Self:
        """Columns of these ballots."""
        rows = list(ballots)
        voters, voter = _codes([row.voter for row in rows])
        adapters, spoke = _codes([name for row in rows for name in (row.adapter_a, row.adapter_b)])
        return cls(
            voters=voters,
            adapters=adapters,
            voter=voter,
            left=spoke[0::2],
            right=spoke[1::2],
            choice=np.array([row.choice for row in rows], dtype=np.int8),
            gold=np.array([row.gold for row in rows], dtype=np.int8),
            leak=np.array([row.leak for row in rows], dtype=np.bool_),
            prompt=np.array([row.prompt for row in rows], dtype=np.int64),
            length_a=np.array([row.length_a for row in rows], dtype=np.int32),
            length_b=np.array([row.length_b for row in rows], dtype=np.int32),
            shown_ms=np.array([row.shown_ms for row in rows], dtype=np.int64),
            cast_ms=np.array([row.cast_ms for row in rows], dtype=np.int64),
        )

    @classmethod
    def of_votes(cls, votes: Iterable[VoteCast]) -> Self:
        """Columns of these votes."""
        return cls.of(_ballots(votes))

    def __len__(self) -> int:
        return len(self.voter)

    @property
    def decisive(self) -> NDArray[np.bool_]:
        """(N,) votes that name a winner."""
        return self.choice != NEITHER

    @property
    def contest(self) -> NDArray[np.bool_]:
        """(N,) votes between different adapters on their real answers."""
        return (self.left != self.right) & (self.gold == NO_GOLD)

    @property
    def fair(self) -> NDArray[np.bool_]:
        """(N,) contests in which nobody gave itself away: what ratings are made of."""
        return self.contest & ~self.leak

    def only(self, kept: NDArray[np.bool_]) -> Ballots:
        """The ballots where `kept` (N,) is true; names keep their numbers."""
        columns = {name: getattr(self, name) for name in (field.name for field in fields(self))}
        return Ballots(**{n: c if isinstance(c, tuple) else c[kept] for n, c in columns.items()})


def _ballots(votes: Iterable[VoteCast]) -> Iterator[Ballot]:
    return (ballot_of(vote) for vote in votes)


def _codes(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Distinct names in alphabetical order, and each entry's number: the order of the votes decides nothing."""
    known = tuple(sorted(set(names)))
    number = {name: index for index, name in enumerate(known)}
    return known, np.array([number[name] for name in names], dtype=np.int32)
