"""Living beside other processes of the machine, so that a person's chat stays quick while a cycle trains: stepping back
behind them, and OpenMP threads that sleep where they would spin.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
SHORT_WAITS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}
"""Environment of a process that computes beside others. Threads that spin at OpenMP's barriers cost the others a factor
of ten; threads that sleep at once pay a wake-up for each of the thousands of small operations of a training step. So
GNU's runtime spins for some 30 microseconds, then sleeps (docs/adr/0035)."""

_ATTEMPTS, _PAUSE_S = 20, 0.11


def short_waits(given: Mapping[str, str]) -> dict[str, str]:
    """What of `SHORT_WAITS` an environment lacks; one that asks for active waiting is left alone."""
    if given.get("OMP_WAIT_POLICY", "PASSIVE").upper() != "PASSIVE":
        return {}
    return {name: value for name, value in SHORT_WAITS.items() if name not in given}


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
        _lower(autogroup, niceness)


def _lower(autogroup: Path, niceness: int) -> None:
    """It is a courtesy: where the kernel won't have it, the process works on as on one without such groups."""
    for _ in range(_ATTEMPTS):
        try:
            autogroup.write_text(f"{niceness}\n")
        except BlockingIOError:  # of all processes of the machine that aren't root's, one may in a tenth of a second
            time.sleep(_PAUSE_S)  # nothing tells when the kernel takes the next; bounded by _ATTEMPTS
        except PermissionError:  # as in a sandbox
            return
        else:
            return
