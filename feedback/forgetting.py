"""Forgetting a voter everywhere at once: ledger, dataset, and the account of what was trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feedback.dataset import Dataset
from feedback.ledger import Ledger
from feedback.lineage import Lineage

RETRAIN = "hustings train --once --set train.schedule.start_from=base"


@dataclass(frozen=True, slots=True)
class ForgottenReport:
    """What was forgotten, and what remembers it still.

    Attributes:
        conversations, pairs, votes: what went from the ledger.
        snapshots: those that held the voter; their tables are gone.
        adapters: trained on them, and `descendants`: went on from such an adapter.
        remedy: the command that trains an adapter without them; None where none was trained on them.
    """

    voter: str
    conversations: int
    pairs: int
    votes: int
    snapshots: tuple[str, ...]
    adapters: tuple[str, ...]
    descendants: tuple[str, ...]
    remedy: str | None


def forget(ledger: Ledger, dataset: Dataset, adapters: Path, voter: str) -> ForgottenReport:
    """Forget a voter. The ledger comes first; where the rest fails, the curator finishes it from the tombstone.

    Args:
        voter: the pseudonym.
        adapters: folder of published adapters.

    Raises:
        LedgerUnavailable: nothing was done.
        DatasetError: the ledger has forgotten; the curator, or doing it again, does the rest.
    """
    gone = ledger.forget(voter)
    stone = dataset.forget(gone.event)
    lineage = Lineage(ledger, dataset, adapters)
    trained = lineage.trained_on(stone.snapshots)
    return ForgottenReport(
        voter=voter,
        conversations=gone.conversations,
        pairs=gone.pairs,
        votes=gone.votes,
        snapshots=stone.snapshots,
        adapters=trained,
        descendants=lineage.descendants(trained),
        remedy=RETRAIN if trained else None,
    )
