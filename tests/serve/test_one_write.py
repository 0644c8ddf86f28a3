"""What is written within one turn of the event loop leaves in one piece, and nothing is held beyond it."""

from __future__ import annotations

import asyncio
from typing import Any

from serve.one_write import AT_ONCE, Gathering


class Transport:
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.done.append("paused")


def made() -> tuple[Transport, Gathering]:
    transport = Transport()
    return transport, Gathering(transport, asyncio.get_running_loop())  # type: ignore[arg-type]


async def test_head_and_body_go_together_when_the_turn_ends() -> None:
    transport, gathering = made()
    gathering.write(b"head ")
    gathering.write(b"body")
    assert transport.done == []
    await asyncio.sleep(0)
    assert transport.done == [b"head body"]


async def test_each_turn_sends_its_own() -> None:
    transport, gathering = made()
    for chunk in (b"first", b"second"):
        gathering.write(chunk)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.done == [b"first", b"second"]


async def test_much_is_not_held_until_the_end_of_the_turn() -> None:
    transport, gathering = made()
    gathering.write(b"x" * (AT_ONCE - 1))
    assert transport.done == []
    gathering.write(b"y")
    assert transport.done == [b"x" * (AT_ONCE - 1) + b"y"]
    await asyncio.sleep(0)
    assert len(transport.done) == 1


async def test_closing_sends_first() -> None:
    transport, gathering = made()
    gathering.write(b"the last words")
    gathering.close()
    await asyncio.sleep(0)
    assert transport.done == [b"the last words", "closed"]


async def test_a_client_that_went_within_the_turn_is_written_nothing() -> None:
    transport, gathering = made()
    gathering.write(b"too late")
    transport.closing = True
    await asyncio.sleep(0)
    assert transport.done == []


async def test_all_else_is_the_transports_own() -> None:
    transport, gathering = made()
    gathering.pause_reading()
    assert transport.done == ["paused"]
    assert not gathering.is_closing()
