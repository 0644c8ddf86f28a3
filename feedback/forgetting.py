"""Forgetting a voter everywhere at once: ledger, dataset, and the account of what was trained on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feedback.dataset import Dataset
from feedback.ledger import Ledger
from feedback.lineage import Lineage, TakenOut


class UnknownImport(ValueError):
    """Nothing was imported under this name; the message lists the names."""


RETRAIN = "hustings train --once --set train.schedule.start_from=base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(TakenOut):
    """What is remembered still.

    Attributes:
        remedy: the command that trains an adapter without them; None where none was trained on them.
    """

    remedy: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenReport(Report):
    """A voter was forgotten; `conversations`, `pairs` and `votes` are what went from the ledger."""

    voter: str
    conversations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack(Report):
    """An import was taken back; `pairs`, `votes` and `snapshots` are those of every time that it was."""

    imported: str


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
    told = _told(Lineage(ledger, dataset, adapters).taken_out(stone)) | {"pairs": gone.pairs, "votes": gone.votes}
    return ForgottenReport(voter=voter, conversations=gone.conversations, **told)


def take_back(ledger: Ledger, dataset: Dataset, adapters: Path, name: str) -> TakenBack:
    """Take back what was imported under a name.

    Raises:
        UnknownImport: nothing was ever imported under it.
        DatasetError: doing it again does the rest.
    """
    stone = dataset.take_back(name)
    if stone is None:
        there = ", ".join(sorted(dataset.imports())) or "none"
        raise UnknownImport(f"nothing was imported as {name!r}; imports of this dataset: {there}")
    return TakenBack(imported=name, **_told(Lineage(ledger, dataset, adapters).taken_out(stone)))


def _told(out: TakenOut) -> dict[str, Any]:
    """The fields of a `Report`."""
    return {**asdict(out), "remedy": RETRAIN if out.adapters else None}
