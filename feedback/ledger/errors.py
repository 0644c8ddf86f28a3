"""What can go wrong with the ledger.

LedgerError
├── LedgerUnavailable   the database can't be reached, is full, locked or read-only
├── LedgerTooNew        the database was migrated by a newer Hustings
├── UnknownPair         no such pair
├── NotYourPair         the pair was shown to somebody else
├── NotYourConversation the conversation is somebody else's
├── PairConflict        another pair has this id
├── UnfitVote           the vote isn't one that this pair takes: two answers take a choice, more of them a ranking
├── VoteConflict        this voter has already voted otherwise on this pair
└── ReleaseConflict     another serving has moved the release meanwhile
"""

from __future__ import annotations

from collections.abc import Sequence


class LedgerError(Exception):
    """Base of the ledger's failures."""


class LedgerUnavailable(LedgerError):
    """The database can't do it now; the message says why and what to do. Nothing was half written."""


class LedgerTooNew(LedgerError):
    """The database was migrated by a newer Hustings than this one."""


class UnknownPair(LedgerError):
    """No pair (or single answer: `what`) has this id."""

    def __init__(self, pair_id: str, what: str = "pair") -> None:
        super().__init__(f"no {what} {pair_id!r} was shown")
        self.pair_id = pair_id


class NotYourPair(LedgerError):
    """The pair (or single answer: `what`) was shown to another voter."""

    def __init__(self, pair_id: str, what: str = "pair") -> None:
        super().__init__(f"{what} {pair_id!r} was shown to another voter")
        self.pair_id = pair_id


class NotYourConversation(LedgerError):
    """The conversation was begun by another voter."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"conversation {conversation_id!r} is another voter's; leave conversation_id out to begin one")
        self.conversation_id = conversation_id


class PairConflict(LedgerError):
    """A different pair was recorded under this id."""

    def __init__(self, pair_id: str) -> None:
        super().__init__(f"a different pair {pair_id!r} is already recorded; make a new id for each pair")
        self.pair_id = pair_id


class UnfitVote(LedgerError):
    """The vote isn't one that this pair takes; the message says which are."""

    def __init__(self, pair_id: str, positions: Sequence[str]) -> None:
        if len(positions) == 2:
            wanted = "a choice: a, b, tie or both_bad"
        else:
            wanted = f"a ranking that names {', '.join(positions)} once each, or the choice tie or both_bad"
        super().__init__(f"pair {pair_id!r} has {len(positions)} answers and takes {wanted}")
        self.pair_id = pair_id


class VoteConflict(LedgerError):
    """The voter has chosen otherwise before; the first choice stands."""

    def __init__(self, pair_id: str, vote_id: str, choice: str, what: str = "pair") -> None:
        super().__init__(f"{what} {pair_id!r} already has your vote {choice!r}; the first choice stands")
        self.pair_id = pair_id
        self.vote_id = vote_id
        self.choice = choice


class ReleaseConflict(LedgerError):
    """A release isn't in the state that it was to be moved from: somebody else has moved it."""

    def __init__(self, name: str, expected: str | None) -> None:
        super().__init__(f"{name} is no longer {expected or 'unknown'}: it was moved meanwhile; look again and repeat")
        self.name = name
