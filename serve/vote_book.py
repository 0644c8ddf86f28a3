"""What serving knows of the votes: light ballots of the newest, read from the ledger as they come, and what follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from feedback.config import VotersConfig
from feedback.contracts import VoterForgotten
from feedback.ledger import Ledger, Place
from feedback.voters import Ballot, Ballots, ballots_of, voter_trust, weights_of
from feedback.voters.ballots import BASE
from serve.kept import QUICK_S, REST
from serve.leaderboard import Leaderboard, leaderboard, left_of

LATE_US = 60_000_000
"""A vote may reach the ledger so long after its time: the last minute is read again each time."""
_BEGINNING: Place = (-1, "")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class VoteNews:
    """What the votes say at one moment.

    Attributes:
        left: share of the decisive votes that went left, and its 95% interval; planted pairs aside.
        weights: each voter's weight, 0 to 1.
    """

    board: Leaderboard
    left: tuple[float, float, float] | None
    weights: dict[str, float]

    def trust(self) -> dict[str, int]:
        """Voters who count whole (nine tenths or more), in part, and hardly (under a tenth)."""
        found = list(self.weights.values())
        whole, hardly = sum(weight >= 0.9 for weight in found), sum(weight < 0.1 for weight in found)
        return {"whole": whole, "part": len(found) - whole - hardly, "hardly": hardly}


class VoteBook:
    """Keeps the ballots in memory and works out standings and weights at most every `fresh_s`. For any thread.

    With very many votes and adapters that takes seconds; then they are kept for twenty times as long (`serve.kept`).

    Args:
        most: ballots kept, the newest.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ledger: Ledger,
        voters: VotersConfig,
        *,
        most: int,
        fresh_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._voters = voters
        self._most = most
        self._fresh_s = fresh_s
        self._clock = clock
        self._lock = threading.Lock()
        self._ballots: dict[str, tuple[Place, tuple[Ballot, ...]]] = {}
        self._read_to: Place | None = None
        self._total = 0
        self._forgotten: frozenset[VoterForgotten] = frozenset()
        self._news: VoteNews | None = None
        self._until = -float("inf")

    def news(self) -> VoteNews:
        """Standings and weights, at most as old as configured, or as they must be to cost little; blocks.

        Raises:
            LedgerUnavailable: the ledger can't be read.
        """
        with self._lock:
            if self._news is None or self._clock() >= self._until:
                began = self._clock()
                self._refresh()
                took = self._clock() - began
                self._until = began + max(self._fresh_s, REST * took if took > QUICK_S else 0.0)
            assert self._news is not None, "a refresh leaves news"
            return self._news

    def voter_weights(self) -> dict[str, float]:
        """Each voter's weight, 0 to 1; who is missing has not voted, and counts whole."""
        return self.news().weights

    def trust_before(self, before: datetime, one: str | None, other: str | None) -> dict[str, float]:
        """How far each voter is trusted, 0 to 1, by votes cast before then that say nothing of these two; blocks.

        Raises:
            LedgerUnavailable: the ledger can't be read.
        """
        until = before.timestamp() * 1000
        contest = {one or BASE, other or BASE}
        with self._lock:
            self._read()
            rows = [cast for _, cast in self._ballots.values() if cast[0].cast_ms < until]
        elsewhere = [
            row for cast in rows if all({row.adapter_a, row.adapter_b} != contest for row in cast) for row in cast
        ]
        return voter_trust(Ballots.of(elsewhere), self._voters)

    def _refresh(self) -> None:
        changed = self._read()
        if changed or self._news is None:
            ballots = Ballots.of(ballot for _, cast in self._ballots.values() for ballot in cast)
            weights = weights_of(ballots, self._voters)
            self._news = VoteNews(leaderboard(ballots, weights.votes), left_of(ballots), weights.voters)

    def _read(self) -> bool:
        """Take in what is new; True where anything is. When a voter was forgotten, all is read again."""
        forgotten = frozenset(self._ledger.forgotten())
        if forgotten != self._forgotten:
            self._ballots.clear()
            self._read_to, self._total = None, 0
        self._forgotten = forgotten
        before = len(self._ballots), self._read_to
        total, _ = self._ledger.votes_since(_EPOCH)
        if self._read_on() < min(total - self._total, self._most):
            # A clock that was set back gives new votes earlier times than those that were read.
            self._ballots.clear()
            self._read_to = None
            self._read_on()
        self._total = total
        for vote_id in sorted(self._ballots, key=lambda key: self._ballots[key][0])[: -self._most]:
            del self._ballots[vote_id]
        return before != (len(self._ballots), self._read_to)

    def _read_on(self) -> int:
        """Take in what comes after the newest that was read, or at first the newest; returns how many were new."""
        if self._read_to is None:
            self._read_to = self._ledger.place_before_newest(self._most)
        known = len(self._ballots)
        after: Place = (self._read_to[0] - LATE_US, "")
        while batch := self._ledger.votes_after(after):
            after = batch[-1][0]
            for place, vote in batch:
                if vote.vote_id not in self._ballots:
                    self._ballots[vote.vote_id] = (place, ballots_of(vote))
            self._read_to = max(self._read_to, after)
        return len(self._ballots) - known
