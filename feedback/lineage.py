"""Who was made of what: from an answer to its adapter, reward model, snapshot and votes; from a vote to its adapters.

Everything is read from what the loop leaves anyway: the ledger's pairs and votes, the snapshots' ids, the manifests of
adapters. An adapter goes on from its parent, so what the parent was trained on is in it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from feedback.comparisons import told
from feedback.contracts import ADAPTER_NAME_PATTERN, AdapterManifest, Choice, PairShown, Position, VoteCast
from feedback.dataset import Dataset, ForgottenVoter, SnapshotManifest
from feedback.ledger import Ledger
from feedback.manifests import Manifests


class UnknownId(ValueError):
    """Nothing has this id; the message says what was looked for."""


@dataclass(frozen=True, slots=True)
class AdapterLine:
    """What an adapter was made of.

    Attributes:
        ancestors: whom it went on from, the nearest first; empty: it began at the base.
        snapshots: what it and its ancestors were trained on, its own first.
        forgotten: voters in those snapshots who have asked to be forgotten since; empty: it is free of them.
    """

    adapter: str
    base_model: str
    ancestors: tuple[str, ...]
    reward_model: str
    snapshot: str
    votes: int | None
    snapshots: tuple[str, ...]
    forgotten: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SnapshotLine:
    """What a snapshot holds and what was made of it. `descendants` went on from those adapters."""

    snapshot: str
    votes: int
    decisive: int
    prompts: int
    from_time: datetime | None
    to_time: datetime | None
    adapters: tuple[str, ...]
    descendants: tuple[str, ...]
    forgotten: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VoteLine:
    """Where a vote went. `choice` and `cast_at` are None where the ledger doesn't know it (it was imported).

    Attributes:
        ranking: in one line, where it is one: `b>a=c`.
    """

    vote: str
    pair: str | None
    choice: Choice | None
    cast_at: datetime | None
    snapshots: tuple[str, ...]
    adapters: tuple[str, ...]
    descendants: tuple[str, ...]
    ranking: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One answer of a pair: who gave it, and what that one was made of (None for the base)."""

    position: Position
    adapter: AdapterLine | None


@dataclass(frozen=True, slots=True)
class PairLine:
    """A pair: where its answers came from and where its votes went."""

    pair: str
    shown_at: datetime
    base_model: str
    answers: tuple[AnswerLine, ...]
    votes: tuple[VoteLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOut:
    """What was taken out of the dataset, and what had been made of it.

    Attributes:
        snapshots: those that held it; their tables are gone.
        adapters: trained on them, and `descendants`: went on from such an adapter.
        exports: where those snapshots were exported to: nobody but you can take it out there.
        unreadable: adapters and snapshots that can't be read, and why: what they were made of isn't known.
    """

    pairs: int
    votes: int
    snapshots: tuple[str, ...]
    adapters: tuple[str, ...]
    descendants: tuple[str, ...]
    exports: tuple[str, ...]
    unreadable: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoterLine(TakenOut):
    """A forgotten voter. `erased`: their records are gone from the event log too (docs/data.md, "Forgetting")."""

    voter: str
    forgotten_at: datetime
    erased: bool


Line = AdapterLine | SnapshotLine | VoteLine | PairLine | VoterLine


class Lineage:
    """Reads ledger, dataset and adapters as they are now.

    Args:
        adapters: folder of published adapters; what the ledger has of their manifests counts too. Who asks often gives
            the `Manifests` that it keeps.
    """

    def __init__(self, ledger: Ledger, dataset: Dataset, adapters: Path | Manifests) -> None:
        self._ledger = ledger
        self._dataset = dataset
        found = (adapters if isinstance(adapters, Manifests) else Manifests(ledger, adapters))()
        self._manifests = found.readable
        self._forgotten = {stone.event.voter: stone for stone in dataset.forgotten()}
        snapshots, damaged = dataset.survey()
        self._snapshots: Mapping[str, SnapshotManifest] = {one.id: one for one in snapshots}
        self._unreadable = {**found.unreadable, **damaged}

    def told(self, wanted: str) -> dict[str, Any]:
        """The lineage of an id (`trace`) as a dictionary, and under `unreadable` what it can't tell of, and why.

        Raises:
            UnknownId: there is none of that id.
        """
        return {**asdict(self.trace(wanted)), "unreadable": dict(self._unreadable)}

    def trace(self, wanted: str) -> Line:
        """The lineage of an adapter, a snapshot, a pair, a vote or a forgotten voter.

        Raises:
            UnknownId: there is none of that id.
        """
        if re.fullmatch(ADAPTER_NAME_PATTERN, wanted):
            return self.adapter(wanted)
        if wanted in self._snapshots:
            return self._snapshot(self._snapshots[wanted])
        if wanted in self._forgotten:
            return self._voter(wanted)
        pair = self._ledger.pair(wanted)
        if pair is not None:
            return self._pair(pair)
        vote = self._ledger.vote_of_id(wanted)
        line = self._vote(wanted, vote)
        if vote is None and not line.snapshots:
            raise UnknownId(
                f"{wanted!r} is no adapter, snapshot, pair, vote or forgotten voter of this installation{self._but()}"
            )
        return line

    def adapter(self, name: str) -> AdapterLine:
        """What an adapter was made of.

        Raises:
            UnknownId: neither the ledger nor the folder has its manifest, or it can't be read.
        """
        if name in self._unreadable:
            raise UnknownId(f"{name} can't be told of: {self._unreadable[name]}")
        if name not in self._manifests:
            raise UnknownId(f"no manifest of {name!r}: it lies neither in the adapters' folder nor in the ledger")
        manifest = self._manifests[name]
        ancestors = self._ancestors(manifest)
        snapshots = tuple(dict.fromkeys([manifest.snapshot, *(one.snapshot for one in ancestors)]))
        held = self._snapshots.get(manifest.snapshot)
        return AdapterLine(
            adapter=name,
            base_model=manifest.base_model,
            ancestors=tuple(one.name for one in ancestors),
            reward_model=manifest.reward_model,
            snapshot=manifest.snapshot,
            votes=None if held is None else held.votes,
            snapshots=snapshots,
            forgotten=self._forgotten_in(snapshots),
            created_at=manifest.created_at,
        )

    def trained_on(self, snapshots: Iterable[str]) -> tuple[str, ...]:
        """Adapters that were trained on any of these."""
        wanted = set(snapshots)
        return tuple(sorted(name for name, manifest in self._manifests.items() if manifest.snapshot in wanted))

    def descendants(self, adapters: Iterable[str]) -> tuple[str, ...]:
        """Adapters that went on from any of these, however far down, without these."""
        first = set(adapters)
        return tuple(
            sorted(
                name
                for name, manifest in self._manifests.items()
                if name not in first and first & {one.name for one in self._ancestors(manifest)}
            )
        )

    def taken_out(self, stone: ForgottenVoter) -> TakenOut:
        """What a tombstone, of a voter or of an import, says was taken out, and the adapters made of it."""
        adapters = self.trained_on(stone.snapshots)
        return TakenOut(
            pairs=stone.pairs,
            votes=stone.votes,
            snapshots=stone.snapshots,
            adapters=adapters,
            descendants=self.descendants(adapters),
            exports=self._dataset.exports_of(stone.snapshots),
            unreadable=dict(self._unreadable),
        )

    def _but(self) -> str:
        found = "; ".join(f"{name}: {why}" for name, why in self._unreadable.items())
        return f", as far as can be read ({found})" if found else ""

    def _ancestors(self, manifest: AdapterManifest) -> list[AdapterManifest]:
        found: list[AdapterManifest] = []
        parent = manifest.parent
        while parent in self._manifests and all(one.name != parent for one in found):
            found.append(self._manifests[parent])
            parent = found[-1].parent
        return found

    def _forgotten_in(self, snapshots: Iterable[str]) -> tuple[str, ...]:
        wanted = set(snapshots)
        return tuple(sorted(voter for voter, stone in self._forgotten.items() if wanted & set(stone.snapshots)))

    def _snapshot(self, manifest: SnapshotManifest) -> SnapshotLine:
        adapters = self.trained_on([manifest.id])
        return SnapshotLine(
            snapshot=manifest.id,
            votes=manifest.votes,
            decisive=manifest.decisive,
            prompts=manifest.prompts,
            from_time=manifest.from_time,
            to_time=manifest.to_time,
            adapters=adapters,
            descendants=self.descendants(adapters),
            forgotten=self._forgotten_in([manifest.id]),
        )

    def _vote(self, vote_id: str, vote: VoteCast | None) -> VoteLine:
        snapshots, damaged = self._dataset.survey_for(vote_id)
        self._unreadable.update(damaged)
        adapters = self.trained_on(snapshots)
        return VoteLine(
            vote=vote_id,
            pair=None if vote is None else vote.pair.pair_id,
            choice=None if vote is None else vote.choice,
            cast_at=None if vote is None else vote.cast_at,
            snapshots=tuple(snapshots),
            adapters=adapters,
            descendants=self.descendants(adapters),
            ranking=None if vote is None or vote.ranking is None else told(vote.ranking),
        )

    def _pair(self, pair: PairShown) -> PairLine:
        vote = self._ledger.vote(pair.pair_id, pair.voter)
        return PairLine(
            pair=pair.pair_id,
            shown_at=pair.shown_at,
            base_model=pair.base_model,
            answers=tuple(
                AnswerLine(one.position, self.adapter(one.adapter) if one.adapter in self._manifests else None)
                for one in pair.completions
            ),
            votes=() if vote is None else (self._vote(vote.vote_id, vote),),
        )

    def _voter(self, voter: str) -> VoterLine:
        stone = self._forgotten[voter]
        return VoterLine(
            voter=voter,
            forgotten_at=stone.event.forgotten_at,
            erased=self._dataset.is_erased(voter),
            **asdict(self.taken_out(stone)),
        )
