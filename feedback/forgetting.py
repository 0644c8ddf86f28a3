"""Forgetting a voter everywhere at once: ledger, dataset, and the account of what was trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feedback.dataset import Dataset
from feedback.ledger import Ledger
from feedback.lineage import Lineage


class UnknownImport(ValueError):
    """Nothing was imported under this name; the message lists the names."""


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


@dataclass(frozen=True, slots=True)
class TakenBack:
    """An import that was taken back, and what remembers it still; fields as of `ForgottenReport`."""

    imported: str
    pairs: int
    votes: int
    snapshots: tuple[str, ...]
    adapters: tuple[str, ...]
    descendants: tuple[str, ...]
    remedy: str | None


def take_back(ledger: Ledger, dataset: Dataset, adapters: Path, name: str) -> TakenBack:
    """Take back what was imported under a name; the counts and snapshots are those of every time that it was.

    Raises:
        UnknownImport: nothing was ever imported under it.
        DatasetError: doing it again does the rest.
    """
    stone = dataset.take_back(name)
    if stone is None:
        there = ", ".join(sorted(dataset.imports())) or "none"
        raise UnknownImport(f"nothing was imported as {name!r}; imports of this dataset: {there}")
    lineage = Lineage(ledger, dataset, adapters)
    trained = lineage.trained_on(stone.snapshots)
    return TakenBack(
        imported=name,
        pairs=stone.pairs,
        votes=stone.votes,
        snapshots=stone.snapshots,
        adapters=trained,
        descendants=lineage.descendants(trained),
        remedy=RETRAIN if trained else None,
    )
