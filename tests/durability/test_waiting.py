"""The one wait of the benchmarks."""

import pytest

from benchmarks.waiting import wait_until


def test_it_asks_until_the_answer_is_yes() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), timeout_s=60, every_s=0) < 60
    assert list(answers) == []


def test_it_asks_at_least_once_and_then_gives_up() -> None:
    asked: list[bool] = []
    with pytest.raises(TimeoutError, match="not within 0 s"):
        wait_until(lambda: bool(asked.append(True)), timeout_s=0, every_s=0)
    assert asked
