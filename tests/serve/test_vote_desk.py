"""Votes that wait together are committed together, and each hears its own outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from feedback.ledger import LedgerUnavailable, UnknownPair, VoteDraft
from serve import vote_desk
from serve.vote_desk import VoteDesk


class SlowLedger:
    """Commits when it is let; notes each group."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.trouble: Exception | None = None

    def record_votes(self, drafts: Sequence[VoteDraft]) -> list[Any]:
        self.groups.append([draft.pair_id for draft in drafts])
        self.entered.set()
        assert self.go.wait(10)
        if self.trouble is not None:
            raise self.trouble
        return [UnknownPair("odd") if draft.pair_id == "odd" else f"voted {draft.pair_id}" for draft in drafts]


@pytest.fixture
def ledger() -> SlowLedger:
    return SlowLedger()


async def held(ledger: SlowLedger, desk: VoteDesk, *pair_ids: str) -> list[asyncio.Task[Any]]:
    """The first is being committed, the others wait."""
    tasks = [asyncio.create_task(desk.cast(VoteDraft(pair_ids[0], "v_ann", "a")))]
    await asyncio.to_thread(ledger.entered.wait, 10)
    tasks += [asyncio.create_task(desk.cast(VoteDraft(pair_id, "v_ann", "a"))) for pair_id in pair_ids[1:]]
    await asyncio.sleep(0)
    return tasks


async def test_what_comes_during_a_commit_shares_the_next(ledger: SlowLedger) -> None:
    desk = VoteDesk(ledger)  # type: ignore[arg-type]
    tasks = await held(ledger, desk, "one", "two", "odd", "four")
    ledger.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert ledger.groups == [["one"], ["two", "odd", "four"]]
    assert [answers[0], answers[1], answers[3]] == ["voted one", "voted two", "voted four"]
    assert isinstance(answers[2], UnknownPair)


async def test_a_group_has_a_largest_size_and_all_are_served(
    ledger: SlowLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vote_desk, "LARGEST_GROUP", 2)
    desk = VoteDesk(ledger)  # type: ignore[arg-type]
    tasks = await held(ledger, desk, *"abcdef")
    ledger.go.set()
    assert await asyncio.gather(*tasks) == [f"voted {name}" for name in "abcdef"]
    assert ledger.groups == [["a"], ["b", "c"], ["d", "e"], ["f"]]


async def test_who_hangs_up_has_voted_and_holds_nobody_up(ledger: SlowLedger) -> None:
    desk = VoteDesk(ledger)  # type: ignore[arg-type]
    tasks = await held(ledger, desk, "one", "two", "three")
    tasks[1].cancel()
    await asyncio.sleep(0)
    ledger.go.set()
    assert await asyncio.gather(tasks[0], tasks[2]) == ["voted one", "voted three"]
    assert ledger.groups == [["one"], ["two", "three"]]
    assert tasks[1].cancelled()


async def test_a_ledger_out_of_reach_refuses_the_group_and_the_next_is_tried_again(ledger: SlowLedger) -> None:
    desk = VoteDesk(ledger)  # type: ignore[arg-type]
    ledger.trouble = LedgerUnavailable("the disk is full")
    tasks = await held(ledger, desk, "one", "two")
    ledger.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, LedgerUnavailable) for answer in answers)
    ledger.trouble = None
    assert await desk.cast(VoteDraft("three", "v_ann", "a")) == "voted three"
