from __future__ import annotations

import threading

import httpx
import pytest

from serve.deps import ServeDeps
from serve.kept import Kept


class Work:
    """Counts its calls; each takes so long by its own clock."""

    def __init__(self, takes_s: float) -> None:
        self.calls = 0
        self.now = 0.0
        self.takes_s = takes_s

    def __call__(self) -> int:
        self.calls += 1
        self.now += self.takes_s
        return self.calls

    def clock(self) -> float:
        return self.now


def test_quick_work_is_done_each_time() -> None:
    work = Work(0.19)
    kept = Kept(work, work.clock)
    assert [kept(), kept(), kept()] == [1, 2, 3]


def test_slow_work_is_done_again_after_twenty_times_as_long() -> None:
    work = Work(2.0)
    kept = Kept(work, work.clock)
    assert [kept(), kept()] == [1, 1]
    work.now += 39.9
    assert kept() == 1
    work.now += 0.1
    assert [kept(), kept()] == [2, 2]


def test_while_one_works_the_others_take_what_there_was() -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls = 0

    def work() -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            begun.set()
            assert go_on.wait(5)
        return calls

    kept = Kept(work)
    assert kept() == 1
    worker = threading.Thread(target=kept)
    worker.start()
    assert begun.wait(5)
    assert kept() == 1
    go_on.set()
    worker.join()
    assert calls == 2


def test_work_that_fails_is_tried_again() -> None:
    answers = [ValueError("away"), 7]

    def work() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    kept = Kept(work)
    with pytest.raises(ValueError, match="away"):
        kept()
    assert kept() == 7


async def test_the_pages_ask_for_the_votes_by_choice_once_in_a_while(
    deps: ServeDeps, client: httpx.AsyncClient
) -> None:
    """Joined over all votes they took 1.6 s at 200,000 of them, at every look of every open Loop page."""
    work = Work(2.0)
    object.__setattr__(deps, "tallies", Kept(lambda: [][work() :], work.clock))
    for path in ("/v1/loop", "/v1/loop", "/v1/leaderboard"):
        assert (await client.get(path)).status_code == 200
    assert work.calls == 1
