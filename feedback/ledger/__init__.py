"""The ledger: what the system knows for sure. SQLite in WAL mode, or PostgreSQL."""

from feedback.ledger.ballots import LedgerCounts, Tally
from feedback.ledger.casting import Side, VoteDraft, VoteOutcome
from feedback.ledger.duels import Duel
from feedback.ledger.errors import (
    LedgerError,
    LedgerTooNew,
    LedgerUnavailable,
    NotYourConversation,
    NotYourPair,
    PairConflict,
    ReleaseConflict,
    UnfitVote,
    UnknownPair,
    VoteConflict,
)
from feedback.ledger.forgetting import Forgotten
from feedback.ledger.ledger import Ledger, Place
from feedback.ledger.offices import Release
from feedback.ledger.outbox import OutboxRow, OutboxStats, ParkedRow
from feedback.ledger.release_pages import ReleasePage, ReleaseTotals

__all__ = [
    "Duel",
    "Forgotten",
    "Ledger",
    "LedgerCounts",
    "LedgerError",
    "LedgerTooNew",
    "LedgerUnavailable",
    "NotYourConversation",
    "NotYourPair",
    "OutboxRow",
    "OutboxStats",
    "PairConflict",
    "ParkedRow",
    "Place",
    "Release",
    "ReleaseConflict",
    "ReleasePage",
    "ReleaseTotals",
    "Side",
    "Tally",
    "UnfitVote",
    "UnknownPair",
    "VoteConflict",
    "VoteDraft",
    "VoteOutcome",
]
