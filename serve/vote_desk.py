"""Where votes are handed in: those that come while others are being committed share the next commit."""

from __future__ import annotations

import asyncio

import anyio.to_thread

from feedback.ledger import Ledger, VoteDraft, VoteOutcome

LARGEST_GROUP = 256
"""Votes of one commit at most."""


class VoteDesk:
    """Takes votes on the event loop and records them on a worker thread, one group after the other.

    A lone vote is committed at once. Under load a group is what came during the commit before: one change of threads,
    one transaction and one wait for the disk for all of them. Nobody is answered before their vote is on disk.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[tuple[VoteDraft, asyncio.Future[VoteOutcome]]] = []
        self._committing: asyncio.Task[None] | None = None

    async def cast(self, draft: VoteDraft) -> VoteOutcome:
        """Record a vote; it is on disk on return. Who gives up waiting has voted all the same.

        Raises:
            LedgerError: as `Ledger.record_vote`.
        """
        answer: asyncio.Future[VoteOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((draft, answer))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_waiting(), name="vote-desk")
        return await answer

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:LARGEST_GROUP], self._waiting[LARGEST_GROUP:]
                for (_, answer), outcome in zip(group, await self._record(group), strict=True):
                    _tell(answer, outcome)
        finally:
            self._committing = None

    async def _record(
        self, group: list[tuple[VoteDraft, asyncio.Future[VoteOutcome]]]
    ) -> list[VoteOutcome | Exception]:
        try:
            return await anyio.to_thread.run_sync(self._ledger.record_votes, [draft for draft, _ in group])
        except Exception as error:  # noqa: BLE001  raised again in the request of each vote
            return [error] * len(group)


def _tell(answer: asyncio.Future[VoteOutcome], outcome: VoteOutcome | Exception) -> None:
    if answer.done():  # the client has hung up
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
