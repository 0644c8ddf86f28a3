"""Votes as columns: the little of each that reliability, position bias and standings look at.

A row is a comparison of two answers. A vote on a pair is one; a ranking of K answers is K(K-1)/2 rows that together are
one ballot (`share`), of which `lead` is what a pair would have told.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feedback.comparisons import Comparison, comparisons
from feedback.contracts import PairShown, VoteCast
from feedback.leaks import names_itself

A, B, TIE, BOTH_BAD = 0, 1, 2, 3
"""Codes of a choice."""
BASE = "base"
NO_GOLD = -1
_CODES = {"a": A, "b": B, "tie": TIE, "both_bad": BOTH_BAD}


class Ballot(NamedTuple):
    """One comparison of a vote, light.

    Attributes:
        adapter_a, adapter_b: who spoke; "base" for none.
        choice: `A`, `B`, `TIE` or `BOTH_BAD`.
        gold: `A` or `B` where that answer was known to be the better one, else `NO_GOLD`.
        leak: whether an answer gave away who it is.
        prompt: a digest of the conversation, to find repeats by.
        length_a, length_b: characters of the answers.
        shown_ms, cast_ms: Unix time of both by the server's clock, milliseconds.
        part, among: number of the comparison within its vote, from 0, and how many there are.
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
    part: int = 0
    among: int = 1


def ballots_of(vote: VoteCast) -> tuple[Ballot, ...]:
    """What a vote's ballot holds, a row for every two answers."""
    prompt = _prompt(vote.pair)
    return tuple(_ballot(vote, comparison, prompt) for comparison in comparisons(vote))


def _ballot(vote: VoteCast, compared: Comparison, prompt: int) -> Ballot:
    pair, a, b = vote.pair, compared.first, compared.second
    return Ballot(
        vote_id=vote.vote_id,
        pair_id=pair.pair_id,
        voter=vote.voter,
        adapter_a=a.adapter or BASE,
        adapter_b=b.adapter or BASE,
        choice=_CODES[compared.choice],
        gold=NO_GOLD if pair.gold is None else _CODES.get(pair.gold, NO_GOLD),
        leak=any(names_itself(side.text, pair.base_model) for side in (a, b)),
        prompt=prompt,
        length_a=len(a.text),
        length_b=len(b.text),
        shown_ms=int(pair.shown_at.timestamp() * 1000),
        cast_ms=int(vote.cast_at.timestamp() * 1000),
        part=compared.part,
        among=compared.among,
    )


def _prompt(pair: PairShown) -> int:
    said = "\x1e".join(f"{message.role}\x1f{message.content}" for message in pair.messages)
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(frozen=True, slots=True, eq=False)
class Ballots:
    """N comparisons as columns, in the order given.

    Attributes:
        voters, adapters: names; `voter`, `left` and `right` are their numbers here.
        left, right: adapters of the answers a and b.
        choice: `A`, `B`, `TIE`, `BOTH_BAD`.
        gold: `A`, `B`, `NO_GOLD`.
        part, among: as in `Ballot`.
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
    part: NDArray[np.int8]
    among: NDArray[np.int8]

    @classmethod
    def of(cls, ballots: Iterable[Ballot]) -> Ballots:
        """Columns of these ballots."""
        box = BallotBox()
        for ballot in ballots:
            box.add(ballot)
        return box.ballots()

    @classmethod
    def of_votes(cls, votes: Iterable[VoteCast]) -> Ballots:
        """Columns of these votes."""
        return cls.of(ballot for vote in votes for ballot in ballots_of(vote))

    def __len__(self) -> int:
        return len(self.voter)

    @property
    def decisive(self) -> NDArray[np.bool_]:
        """(N,) votes that name a winner."""
        named: NDArray[np.bool_] = self.choice < TIE
        return named

    @property
    def share(self) -> NDArray[np.float64]:
        """(N,) what the row is of its vote: a vote's rows add up to 1."""
        parts: NDArray[np.float64] = 1.0 / self.among
        return parts

    @property
    def lead(self) -> NDArray[np.bool_]:
        """(N,) the first comparison of each vote: a by b, whichever adapters the draw has put there."""
        first: NDArray[np.bool_] = self.part == 0
        return first

    @property
    def contest(self) -> NDArray[np.bool_]:
        """(N,) votes between different adapters on their real answers."""
        found: NDArray[np.bool_] = (self.left != self.right) & (self.gold == NO_GOLD)
        return found

    @property
    def fair(self) -> NDArray[np.bool_]:
        """(N,) contests in which nobody gave itself away: what ratings are made of."""
        return self.contest & ~self.leak

    def only(self, kept: NDArray[np.bool_]) -> Ballots:
        """The ballots where `kept` (N,) is true; names keep their numbers."""
        columns: dict[str, Any] = {name: getattr(self, name)[kept] for name in _TYPE_CODES}
        return Ballots(self.voters, self.adapters, **columns)


class BallotBox:
    """Takes ballots one by one and keeps some sixty bytes of each."""

    def __init__(self) -> None:
        self._voters = _Names()
        self._adapters = _Names()
        self._columns: dict[str, array[int]] = {name: array(code) for name, code in _TYPE_CODES.items()}

    def __len__(self) -> int:
        return len(self._columns["voter"])

    def add(self, ballot: Ballot) -> None:
        """Take one more."""
        numbers = {
            "voter": self._voters.number(ballot.voter),
            "left": self._adapters.number(ballot.adapter_a),
            "right": self._adapters.number(ballot.adapter_b),
        }
        for name, column in self._columns.items():
            column.append(numbers[name] if name in numbers else getattr(ballot, name))

    def ballots(self) -> Ballots:
        """What was taken, in that order. Names are numbered by the alphabet: the order decides no number."""
        voters, voter = self._voters.in_order()
        adapters, adapter = self._adapters.in_order()
        columns: dict[str, Any] = {name: np.array(column) for name, column in self._columns.items()}
        numbered = {"voter": voter, "left": adapter, "right": adapter}
        columns |= {name: order[columns[name]] for name, order in numbered.items()}
        columns["leak"] = columns["leak"].astype(np.bool_)
        return Ballots(voters, adapters, **columns)


_TYPE_CODES = {
    "voter": "i",
    "left": "i",
    "right": "i",
    "choice": "b",
    "gold": "b",
    "leak": "b",
    "prompt": "q",
    "length_a": "i",
    "length_b": "i",
    "shown_ms": "q",
    "cast_ms": "q",
    "part": "b",
    "among": "b",
}


class _Names:
    """Names by the order of their first coming."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def in_order(self) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """The names by the alphabet, and for each old number its new one."""
        names = tuple(sorted(self._numbers))
        new = np.empty(len(names), dtype=np.int32)
        new[[self._numbers[name] for name in names]] = np.arange(len(names))
        return names, new
