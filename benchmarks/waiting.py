"""Waiting for other processes that announce nothing: a port, a table, a file, an address that answers."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float) -> float:
    """Ask for a condition again and again, at least once; returns the seconds until it was true.

    Args:
        timeout_s: after so many seconds no more is asked.
        every_s: pause between two questions, in seconds.

    Raises:
        TimeoutError: it stayed false. What the condition itself raises ends the wait as well.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not within {timeout_s:.0f} s")
        time.sleep(every_s)  # another process is waited for, which tells nobody: asking is all that can be done
    return time.monotonic() - began
