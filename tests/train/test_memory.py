"""Memory given back to the operating system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train import memory


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_what_was_let_go_of_leaves_the_process() -> None:
    # pieces of 64 KiB: malloc keeps those it frees, where larger ones go back at once
    pieces: list[Any] = [bytearray(2**16) for _ in range(2_000)]
    last = bytearray(2**16)
    held = resident_bytes()
    pieces.clear()
    memory.give_back()
    assert resident_bytes() < held - 100 * 2**20
    assert last is not None, "lies above the pieces: without being asked, malloc can't shrink below it"


def test_an_allocator_that_can_not_give_back_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.memory.ctypes.CDLL", lambda _name: object())
    memory._calls.cache_clear()
    memory.give_back()
    memory._calls.cache_clear()
