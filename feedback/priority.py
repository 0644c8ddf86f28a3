"""Stepping back behind other processes of the machine, so that a person's chat stays quick while a cycle trains."""

from __future__ import annotations

import os
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")


def step_back(niceness: int, autogroup: Path = AUTOGROUP) -> None:
    """Raise this process's niceness to at least `niceness` (0 to 19).

    Linux gives every session a scheduling group of its own (autogroup, sched(7)); between groups a process's niceness
    says nothing, only the group's does. So the leader of a session, as each child of `hustings up` is, lowers its
    group too; a process inside somebody's terminal session leaves that alone.

    Args:
        niceness: as for nice(1).
        autogroup: for tests.
    """
    now = os.nice(0)
    if now < niceness:
        os.nice(niceness - now)
    if os.getsid(0) == os.getpid() and autogroup.exists():
        autogroup.write_text(f"{niceness}\n")
