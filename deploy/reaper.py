"""The supervisor's last will: a tiny process that ends what the supervisor leaves behind when it is killed.

It reads `+PGID` and `-PGID` lines on its standard input. When that ends, whatever way the supervisor died, the groups
still listed get SIGTERM and, after the grace time, SIGKILL. A group holds a child and all that the child started (the
engine's own core process). It runs without site packages, in a session of its own: `python -S -E reaper.py GRACE_S`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable


def main() -> int:
    """Wait for the end of standard input, then clear what is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    grace_s = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    groups: list[int] = []
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.append(group)
        elif group in groups:
            groups.remove(group)
    clear(reversed(groups), grace_s)
    return 0


def clear(groups: Iterable[int], grace_s: float) -> None:
    """End process groups: SIGTERM, then SIGKILL for what still lives after `grace_s`."""
    left = [group for group in groups if _signal(group, signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)  # not our children, so there is no wait(2) for their end; bounded by grace_s
        left = [group for group in left if _signal(group, 0)]
    for group in left:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    raise SystemExit(main())
