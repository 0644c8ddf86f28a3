"""Forgetting a voter everywhere at once: ledger, dataset, and the account of what was trained on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from feedback.dataset import Dataset, ForgottenVoter
from feedback.ledger import Ledger
from feedback.lineage import Lineage, TakenOut
from feedback.manifests import Manifests


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


class Outcome(StrEnum):
    """What forgetting found. A tombstone is kept in any case: what was said until now and comes later is refused."""

    FORGOTTEN = "forgotten"
    ALREADY = "already_forgotten"
    """Nothing has come since they were forgotten."""
    UNKNOWN = "unknown"
    """Nobody of this name has ever left a conversation, a pair or a vote here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenReport(Report):
    """A voter was forgotten; `conversations`, `pairs` and `votes` are what went from the ledger.

    Attributes:
        before: when they were last asked to be forgotten, before this.
    """

    voter: str
    outcome: Outcome
    before: datetime | None
    conversations: int

    def verdict(self) -> str:
        """The outcome in a sentence."""
        if self.outcome is Outcome.FORGOTTEN:
            return f"{self.voter} is forgotten."
        if self.outcome is Outcome.ALREADY:
            return f"{self.voter} was forgotten already ({self.before:%Y-%m-%d %H:%M:%S}); nothing has come since."
        return (
            f"No conversation, pair or vote of {self.voter} was found, and nobody of this name was forgotten before:"
            " is it the right pseudonym, and of this installation? Should something that they said until now come"
            " in later, it won't be kept."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack(Report):
    """An import was taken back; `pairs`, `votes` and `snapshots` are those of every time that it was."""

    imported: str


def forget(ledger: Ledger, dataset: Dataset, adapters: Path | Manifests, voter: str) -> ForgottenReport:
    """Forget a voter. The ledger comes first; where the rest fails, the curator finishes it from the tombstone.

    Args:
        voter: the pseudonym.
        adapters: folder of published adapters, or the manifests that the caller keeps.

    Raises:
        LedgerUnavailable: nothing was done.
        DatasetError: the ledger has forgotten; the curator, or doing it again, does the rest.
    """
    tombstones = [event for event in ledger.forgotten() if event.voter == voter]
    gone = ledger.forget(voter)
    # A curator may have heard of it already: then its tombstone tells nothing of an earlier time.
    stones = [one for one in dataset.forgotten() if one.event.voter == voter and one.event != gone.event]
    earlier = max((one.forgotten_at for one in (*tombstones, *(one.event for one in stones))), default=None)
    stone = dataset.forget(gone.event)
    told = _told(Lineage(ledger, dataset, adapters).taken_out(stone)) | {"pairs": gone.pairs, "votes": gone.votes}
    found = gone.rows > 0 or _weight(stone) > sum(map(_weight, stones))
    nothing = Outcome.UNKNOWN if earlier is None else Outcome.ALREADY
    outcome = Outcome.FORGOTTEN if found else nothing
    return ForgottenReport(voter=voter, outcome=outcome, before=earlier, conversations=gone.conversations, **told)


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


def _weight(stone: ForgottenVoter) -> int:
    return stone.votes + stone.pairs + len(stone.snapshots)


def _told(out: TakenOut) -> dict[str, Any]:
    """The fields of a `Report`."""
    return {**asdict(out), "remedy": RETRAIN if out.adapters else None}
