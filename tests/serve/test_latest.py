from __future__ import annotations

import asyncio
import threading

import anyio.to_thread
import pytest

from serve.latest import Latest


class Work:
    """Returns how often it was called; while `go_on` is cleared, it takes for ever."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.failure: Exception | None = None

    def __call__(self) -> int:
        self.calls += 1
        assert self.go_on.wait(30)
        if self.failure is not None:
            raise self.failure
        return self.calls


async def test_it_is_worked_out_for_each_who_asks_while_that_is_quick() -> None:
    latest = Latest(Work())
    assert [await latest(), await latest()] == [1, 2]


async def test_a_hundred_who_wait_for_the_first_hold_one_thread() -> None:
    """Forty threads write pairs and votes too: pages that waited for standings took all of them."""
    work = Work()
    work.go_on.clear()
    latest = Latest(work)
    asked = [asyncio.create_task(latest()) for _ in range(100)]
    while not work.calls:
        await asyncio.sleep(0)
    assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 1
    work.go_on.set()
    assert await asyncio.gather(*asked) == [1] * 100


async def test_who_asks_while_newer_ones_are_worked_out_takes_those_that_there_are() -> None:
    work = Work()
    latest = Latest(work, patience_s=0.0)
    assert await latest.if_any() is None
    assert await latest() == 1
    work.go_on.clear()
    assert [await latest(), await latest(), await latest.if_any()] == [1, 1, 1]
    work.go_on.set()
    while await latest() == 1:
        await asyncio.sleep(0)


async def test_a_failure_is_told_and_the_next_who_asks_tries_again() -> None:
    work = Work()
    work.failure = OSError("away")
    latest = Latest(work)
    with pytest.raises(OSError, match="away"):
        await latest()
    work.failure = None
    assert await latest() == 2
