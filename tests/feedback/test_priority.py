"""Stepping back: niceness always, the scheduling group only where it is the process's own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from feedback import priority

SCRIPT = """
import os, sys
from pathlib import Path
from feedback.priority import step_back
step_back(int(sys.argv[1]), Path(sys.argv[2]))
print(os.nice(0))
"""


def run(niceness: int, autogroup: Path, *, leads: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(niceness), str(autogroup)],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=leads,
        cwd=Path(__file__).parents[2],
    )
    return int(done.stdout)


@pytest.mark.parametrize(("leads", "written"), [(True, "19\n"), (False, "0\n")])
def test_only_the_leader_of_a_session_lowers_its_scheduling_group(tmp_path: Path, leads: bool, written: str) -> None:
    group = tmp_path / "autogroup"
    group.write_text("0\n")
    assert run(19, group, leads=leads) == 19
    assert group.read_text() == written


def test_a_kernel_without_scheduling_groups_is_no_obstacle(tmp_path: Path) -> None:
    assert run(19, tmp_path / "absent", leads=True) == 19


class Group:
    """A scheduling group whose kernel refuses so often."""

    def __init__(self, refusals: list[OSError]) -> None:
        self.refusals = refusals
        self.written = ""

    def exists(self) -> bool:
        return True

    def write_text(self, text: str) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.written = text


@pytest.mark.parametrize(
    ("refusals", "written"),
    [
        ([BlockingIOError(errno.EAGAIN, "again")] * 2, "5\n"),
        ([BlockingIOError(errno.EAGAIN, "again")] * 1_000, ""),
        ([PermissionError(errno.EACCES, "denied")], ""),
    ],
)
def test_a_kernel_that_will_not_have_it_now_ends_no_process(
    monkeypatch: pytest.MonkeyPatch, refusals: list[OSError], written: str
) -> None:
    """Linux lets one process that isn't root's change its group in a tenth of a second: of two, one met it."""
    monkeypatch.setattr(priority, "_PAUSE_S", 0.0)
    monkeypatch.setattr(os, "nice", lambda _: 5)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    group = Group(refusals)
    priority.step_back(5, cast(Path, group))
    assert group.written == written
