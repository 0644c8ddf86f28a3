"""The ledger: the record of conversations, pairs, votes and releases, and the outbox that tells of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Self

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from feedback.contracts import (
    AdapterManifest,
    AnswerShown,
    Choice,
    GateChanged,
    PairShown,
    Ranking,
    ReleaseChanged,
    Thumb,
    VoteCast,
    VoterForgotten,
)
from feedback.ledger import ballots, casting, forgetting, offices, outbox
from feedback.ledger import duels as duelling
from feedback.ledger import thumbs as thumbing
from feedback.ledger.ballots import LedgerCounts, Tally
from feedback.ledger.casting import VoteDraft, VoteOutcome
from feedback.ledger.database import Database
from feedback.ledger.duels import Duel
from feedback.ledger.errors import LedgerUnavailable
from feedback.ledger.forgetting import Forgotten
from feedback.ledger.kept_manifests import KeptManifests
from feedback.ledger.migrate import migrate
from feedback.ledger.offices import Release
from feedback.ledger.outbox import OutboxRow, OutboxStats, ParkedRow
from feedback.ledger.release_pages import ReleasePages
from feedback.ledger.tables import to_us
from feedback.ledger.thumbs import ThumbCounts, ThumbOutcome
from feedback.privacy import Redactor

Place = tuple[int, str]
"""A place in the order of the votes: time in microseconds and id."""
BATCH = 500
"""Events that are read, or made pending again, in one transaction."""


class Ledger(ReleasePages):
    """Synchronous and safe to use from many threads; several processes may open one database.

    Every method that changes something is one transaction, on disk when it returns. All of them raise
    `LedgerUnavailable` when the database can't be reached.
    """

    def __init__(self, database: Database, redactor: Redactor | None = None) -> None:
        self._database = database
        self._redactor = redactor
        self._manifests = KeptManifests()
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def open(cls, url: str, redactor: Redactor | None = None) -> Self:
        """Connect and migrate.

        Args:
            url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`.
            redactor: takes personal data out of every pair and vote before it is written; None writes them as they are.

        Raises:
            LedgerError: the address is of no kind that we know.
            LedgerTooNew: a newer Hustings has migrated the database.
            LedgerUnavailable: the database can't be reached.
        """
        database = Database(url)
        try:
            migrate(database)
        except BaseException:
            database.close()
            raise
        return cls(database, redactor)

    @property
    def shared(self) -> bool:
        """Whether servings on other machines may keep it too: a database server, not a file."""
        return not self._database.is_sqlite

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def on_outbox(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each commit that left something to send; it must be quick and never fail."""
        self._listeners.append(listener)

    # Pairs and votes

    def record_pair(self, pair: PairShown) -> None:
        """Add a pair and its outbox row; the same pair again changes nothing.

        Raises:
            NotYourConversation: another voter began its conversation.
            PairConflict: another pair has this id.
        """
        kept = pair if self._redactor is None else self._redactor.pair(pair)
        self._database.write(lambda connection: ballots.record_pair(connection, kept))
        self._tell()

    def require_conversation(self, conversation_id: str, voter: str) -> None:
        """Pass where the conversation is this voter's, or nobody's yet.

        Raises:
            NotYourConversation: another voter began it.
        """
        self._database.read(lambda connection: ballots.require_conversation(connection, conversation_id, voter))

    def pair(self, pair_id: str) -> PairShown | None:
        """The pair, or None."""
        return self._database.read(lambda connection: ballots.pair(connection, pair_id))

    def conversation(self, conversation_id: str) -> list[PairShown]:
        """A conversation's pairs, the first shown first."""
        return self._database.read(lambda connection: ballots.conversation(connection, conversation_id))

    def record_vote(
        self,
        *,
        pair_id: str,
        voter: str,
        choice: Choice,
        ranking: Ranking | None = None,
        reasons: Sequence[str] = (),
        comment: str | None = None,
        edited: str | None = None,
        dwell_ms: int | None = None,
    ) -> VoteOutcome:
        """Add a vote and its outbox row. The same vote again finds the first one: `created` is False, the id the same.

        Raises:
            UnknownPair: no such pair.
            NotYourPair: it was shown to another voter.
            UnfitVote: two answers take a choice, more of them a ranking (or `tie`, or `both_bad`, of all).
            VoteConflict: the voter has chosen otherwise before.
        """
        draft = VoteDraft(pair_id, voter, choice, tuple(reasons), comment, edited, dwell_ms, ranking)
        (outcome,) = self.record_votes([draft])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def record_votes(self, drafts: Sequence[VoteDraft]) -> list[VoteOutcome | Exception]:
        """Add votes with their outbox rows, in one transaction and by few statements, however many they are.

        Returns:
            One entry a draft, in their order: what became of it, or what `record_vote` would raise; none suffers for
            another.

        Raises:
            LedgerUnavailable: none was recorded.
        """
        kept = [self._redacted(draft) for draft in drafts]
        try:
            outcomes = self._database.write(lambda connection: casting.record_votes(connection, kept))
        except DBAPIError as error:
            # A pair was forgotten in this very moment, say: PostgreSQL takes all back for one.
            outcomes = [error] if len(kept) == 1 else [self._alone(draft) for draft in kept]
        if any(isinstance(outcome, VoteOutcome) and outcome.created for outcome in outcomes):
            self._tell()
        return outcomes

    def vote(self, pair_id: str, voter: str) -> VoteCast | None:
        """What this voter said of the pair, or None."""
        return self._database.read(lambda connection: ballots.vote(connection, pair_id, voter))

    def vote_of_id(self, vote_id: str) -> VoteCast | None:
        """The vote of this id, or None."""
        return self._database.read(lambda connection: ballots.vote_of_id(connection, vote_id))

    def votes_between(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[VoteCast]:
        """Votes cast in [since, until), the first first; None leaves an end open.

        They are read in batches, each in a transaction of its own: any number fits the memory, and no writer waits.
        """
        after = (-1 if since is None else to_us(since), "")
        while True:
            read = partial(ballots.votes_after, after=after, until=until, limit=BATCH)
            batch = self._database.read(read)
            yield from (vote for _, vote in batch)
            if len(batch) < BATCH:
                return
            after = batch[-1][0]

    def votes_after(self, after: Place, limit: int = BATCH) -> list[tuple[Place, VoteCast]]:
        """The next votes after a place in the order of time, each with its own place."""
        return self._database.read(lambda connection: ballots.votes_after(connection, after, None, limit))

    def place_before_newest(self, votes: int) -> Place:
        """The place after which only so many votes are left, the newest; the very beginning where there are no more."""
        return self._database.read(lambda connection: ballots.place_before_newest(connection, votes))

    def votes_since(self, moment: datetime) -> tuple[int, datetime | None]:
        """How many votes were cast since then, and when the first of them was."""
        return self._database.read(lambda connection: ballots.votes_since(connection, moment))

    def tallies(self) -> list[Tally]:
        """Votes counted by adapters, positions and choice: all that win rates and position bias need."""
        return self._database.read(ballots.tallies)

    def record_answer(self, answer: AnswerShown) -> None:
        """Add a single answer (chat mode).

        Raises:
            NotYourConversation: another voter began its conversation.
        """
        kept = answer if self._redactor is None else self._redactor.answer(answer)
        self._database.write(lambda connection: thumbing.record_answer(connection, kept))

    def record_thumb(
        self, *, answer_id: str, voter: str, thumb: Thumb, reasons: Sequence[str] = (), comment: str | None = None
    ) -> ThumbOutcome:
        """Add a thumb and its outbox row. The same thumb again finds the first one.

        Raises:
            UnknownPair, NotYourPair, VoteConflict: as of a vote.
        """
        if self._redactor is not None:
            reasons, comment = self._redactor.reasons(reasons), self._redactor.comment(comment)
        work = partial(
            thumbing.record_thumb, answer_id=answer_id, voter=voter, thumb=thumb, reasons=reasons, comment=comment
        )
        outcome = self._database.write(work)
        if outcome.created:
            self._tell()
        return outcome

    def thumb_counts(self) -> ThumbCounts:
        """How many single answers and thumbs there are."""
        return self._database.read(thumbing.counts)

    def counts(self) -> LedgerCounts:
        """How many conversations, pairs and votes there are."""
        return self._database.read(ballots.counts)

    def forget(self, voter: str) -> Forgotten:
        """Delete everything of a voter and leave a tombstone, which the event log is told of, in one transaction.

        On SQLite the bytes are overwritten and the write-ahead log is emptied; PostgreSQL's vacuum does it in its time.

        Raises:
            LedgerUnavailable: nothing was written, or the log could not be emptied; forgetting again finishes it.
        """
        gone = self._database.write(lambda connection: forgetting.forget(connection, voter))
        self._tell()
        self._database.empty_write_ahead_log()
        return gone

    def forgotten(self) -> list[VoterForgotten]:
        """The tombstones, the first first."""
        return self._database.read(forgetting.tombstones)

    # Outbox

    def pending(self, limit: int) -> list[OutboxRow]:
        """The oldest rows to be sent, in order."""
        return self._database.read(lambda connection: outbox.pending(connection, limit))

    def mark_sent(self, seqs: Iterable[int]) -> None:
        """The broker has acknowledged these rows."""
        self._database.write(lambda connection: outbox.mark_sent(connection, seqs))

    def mark_confirmed(self, event_ids: Iterable[str]) -> int:
        """The curator has made these events durable; returns how many were news. Unknown ids are passed over."""
        return self._database.write(lambda connection: outbox.mark_confirmed(connection, event_ids))

    def park(self, seq: int, error: str) -> None:
        """The broker will never take this row: keep it aside with the reason."""
        self._database.write(lambda connection: outbox.park(connection, seq, error))

    def parked(self, limit: int = 100) -> list[ParkedRow]:
        """The oldest parked rows, with their reasons."""
        return self._database.read(lambda connection: outbox.parked(connection, limit))

    def unpark(self) -> int:
        """Try the parked rows again; returns how many."""
        return self._queued(outbox.unpark)

    def requeue(self, topics: Collection[str] | None, overdue_s: float | None) -> int:
        """Make sent rows pending again; returns how many.

        Args:
            topics: these have lost what they held: all their unconfirmed rows go again.
            overdue_s: rows whose receipt is overdue go again: after this time, doubled by each sending up to an hour.
        """
        return self._queued(lambda connection: outbox.requeue(connection, topics, overdue_s))

    def replay(self, topics: Collection[str]) -> int:
        """Send everything of these topics again, confirmed or not, in the same bytes; returns how many rows.

        In batches, each a transaction, so that votes can be cast meanwhile. What is cast after the start is not among
        them: it is pending by itself.
        """
        rows, after, last = 0, 0, self._database.read(outbox.last_seq)
        while after < last:
            work = partial(outbox.replay, topics=topics, after=after, last=last, limit=BATCH)
            made, after = self._database.write(work)
            rows += made
        if rows:
            self._tell()
        return rows

    def outbox_stats(self) -> OutboxStats:
        """How far the event log lags behind."""
        return self._database.read(outbox.stats)

    # Releases

    def record_release(self, change: ReleaseChanged, manifest: AdapterManifest | None = None) -> None:
        """Add a change to the history, make it the adapter's state, and tell the event log, in one transaction."""
        self.record_releases([change], manifest)

    def record_releases(
        self, changes: Sequence[ReleaseChanged], manifest: AdapterManifest | None = None, *, compare: bool = False
    ) -> None:
        """Several changes that belong together (one retires, another takes office) in one transaction.

        Args:
            manifest: belongs to the change that has its name.
            compare: only if each release is in the state that its change begins at; of several servings that move one
                at the same time, one does.

        Raises:
            ReleaseConflict: with `compare`, another process has moved one of them.
        """

        def work(connection: Connection) -> None:
            if compare:
                offices.require_states(connection, changes)
            for change in changes:
                mine = manifest is not None and manifest.name == change.name
                offices.record(connection, change, manifest if mine else None)

        self._database.write(work)
        self._tell()

    def release(self, name: str) -> Release | None:
        """This release, or None."""
        return self._database.read(lambda connection: offices.one(connection, name))

    def office(self) -> str | None:
        """The adapter in office; None when it is the base."""
        return self._database.read(offices.office)

    def release_history(self, name: str | None = None) -> list[ReleaseChanged]:
        """Changes of one adapter, or of all, the oldest first."""
        return self._database.read(lambda connection: offices.history(connection, name))

    def record_gate(self, change: GateChanged) -> None:
        """Pause the releases, or let them go on, and tell the event log."""
        self._database.write(lambda connection: offices.record_gate(connection, change))
        self._tell()

    def gate_history(self) -> list[GateChanged]:
        """Pauses of the releases and their ends, the oldest first."""
        return self._database.read(offices.gate)

    def duels(self, one: str | None, other: str | None, since: datetime) -> list[Duel]:
        """Votes on pairs of these two (None is the base) shown since then, as `one` sees them, the earliest first."""
        return self._database.read(lambda connection: duelling.duels(connection, one, other, since))

    def pairs_of(self, one: str | None, other: str | None, since: datetime, limit: int = BATCH) -> list[PairShown]:
        """The first pairs of these two adapters (None is the base) that were shown since then."""
        return self._database.read(lambda connection: duelling.pairs_of(connection, one, other, since, limit))

    def _redacted(self, draft: VoteDraft) -> VoteDraft:
        if self._redactor is None:
            return draft
        return replace(
            draft,
            reasons=self._redactor.reasons(draft.reasons),
            comment=self._redactor.comment(draft.comment),
            edited=self._redactor.edited(draft.edited),
        )

    def _alone(self, draft: VoteDraft) -> VoteOutcome | Exception:
        try:
            return self._database.write(lambda connection: casting.record_votes(connection, [draft]))[0]
        except (DBAPIError, LedgerUnavailable) as error:
            return error

    def _queued(self, work: Callable[[Connection], int]) -> int:
        rows = self._database.write(work)
        if rows:
            self._tell()
        return rows

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
