"""What serving asks of the ledger. `feedback.ledger.Ledger` keeps this; tests may bring a smaller one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from feedback.contracts import AdapterManifest, Choice, PairShown, ReleaseChanged, ReleaseState, VoteCast


class VoteOutcome(Protocol):
    """A vote as the ledger holds it; `created` is False where it was there already."""

    @property
    def vote(self) -> VoteCast: ...
    @property
    def created(self) -> bool: ...


class Release(Protocol):
    """A release as the ledger holds it."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> ReleaseState: ...
    @property
    def manifest(self) -> AdapterManifest | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def actor(self) -> str: ...
    @property
    def updated_at(self) -> datetime: ...


class OutboxStats(Protocol):
    """How far the relay is behind."""

    @property
    def pending(self) -> int: ...
    @property
    def unconfirmed(self) -> int: ...
    @property
    def oldest_pending_age_s(self) -> float: ...


class LedgerCounts(Protocol):
    """How much has come together."""

    @property
    def conversations(self) -> int: ...
    @property
    def pairs(self) -> int: ...
    @property
    def votes(self) -> int: ...


class LedgerPort(Protocol):
    """The calls that serving makes; all block, so they are made on worker threads."""

    def record_pair(self, pair: PairShown) -> None: ...
    def record_vote(
        self,
        *,
        pair_id: str,
        voter: str,
        choice: Choice,
        reasons: Sequence[str] = (),
        comment: str | None = None,
        edited: str | None = None,
        dwell_ms: int | None = None,
    ) -> VoteOutcome: ...
    def record_release(self, change: ReleaseChanged, manifest: AdapterManifest | None = None) -> None: ...
    def releases(self) -> Sequence[Release]: ...
    def release(self, name: str) -> Release | None: ...
    def office(self) -> str | None: ...
    def outbox_stats(self) -> OutboxStats: ...
    def counts(self) -> LedgerCounts: ...
