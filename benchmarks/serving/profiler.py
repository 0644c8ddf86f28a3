"""A sampling profiler: where the event loop's processor time goes, at a cost of about one part in a hundred.

A timer that counts the process's processor time interrupts the main thread; the Python stack of that moment gets the
microseconds that this thread itself has computed since the last one, so that other threads' work, and waiting for the
interpreter's lock, count for nothing. C code counts for the Python function that called it. cProfile would slow each
call down, and the short ones most.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from types import FrameType

EVERY_S = 0.002
Stack = tuple[str, ...]


class Profiler:
    """Microseconds by stack, outermost function first."""

    def __init__(self) -> None:
        self.running = False
        self._stacks: Counter[Stack] = Counter()
        self._last = 0.0

    def start(self) -> None:
        """Begin anew. Main thread only."""
        self._stacks.clear()
        self._last = time.thread_time()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        self.running = True

    def stop(self) -> None:
        """End; what was counted stays."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        self.running = False

    def folded(self) -> str:
        """A line a stack, as flame graph tools read it: `outer;inner microseconds`."""
        return "".join(f"{';'.join(stack)} {count}\n" for stack, count in self._stacks.most_common())

    def _sample(self, number: int, frame: FrameType | None) -> None:
        del number
        stack: list[str] = []
        while frame is not None:
            code = frame.f_code
            stack.append(f"{module_of(code.co_filename)}:{code.co_qualname}")
            frame = frame.f_back
        now = time.thread_time()
        self._stacks[tuple(reversed(stack))] += round(1e6 * (now - self._last))
        self._last = now


def module_of(path: str) -> str:
    """A source file as a dotted name, without where it is installed."""
    for mark in ("/site-packages/", "/lib/python3"):
        if mark in path:
            inside = path.rpartition(mark)[2]
            path = inside.partition("/")[2] if mark != "/site-packages/" else inside
    parts = path.removesuffix(".py").strip("/").split("/")
    for root in ("serve", "feedback", "deploy", "benchmarks"):
        if root in parts and "site-packages" not in path:
            parts = parts[parts.index(root) :]
    return ".".join(parts)


def parse(folded: str) -> Counter[Stack]:
    """What `folded` wrote."""
    found: Counter[Stack] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        found[tuple(stack.split(";"))] += int(count)
    return found


def self_time(stacks: Counter[Stack]) -> list[tuple[str, float]]:
    """Share of the time in each function itself, the largest first."""
    own: Counter[str] = Counter()
    for stack, count in stacks.items():
        own[stack[-1]] += count
    return _shares(own, stacks)


def tree(stacks: Counter[Stack], least: float = 0.02) -> list[str]:
    """Calls by calls, each with the share of the time in it and what it calls; those under `least` are left out."""
    total = sum(stacks.values()) or 1
    inclusive: Counter[Stack] = Counter()
    for stack, count in stacks.items():
        for depth in range(1, len(stack) + 1):
            inclusive[stack[:depth]] += count
    kept = {path: count for path, count in inclusive.items() if count >= least * total}
    lines: list[str] = []

    def show(path: Stack, indent: int) -> None:
        lines.append(f"{'  ' * indent}{100 * kept[path] / total:.0f}% {path[-1]}")
        below = [each for each in kept if each[:-1] == path]
        for each in sorted(below, key=lambda each: -kept[each]):
            show(each, indent + 1)

    # What everything has in common, the command line and the loop, is left out.
    shared: Stack = ()
    while len(below := [each for each in kept if each[:-1] == shared]) == 1 and kept[below[0]] > 0.95 * total:
        shared = below[0]
    for each in sorted(below, key=lambda each: -kept[each]):
        show(each, 0)
    return lines


def by_package(stacks: Counter[Stack]) -> list[tuple[str, float]]:
    """Share of the time in each package's own functions."""
    own: Counter[str] = Counter()
    for stack, count in stacks.items():
        own[stack[-1].partition(":")[0].partition(".")[0]] += count
    return _shares(own, stacks)


def _shares(counts: Counter[str], stacks: Counter[Stack]) -> list[tuple[str, float]]:
    total = sum(stacks.values()) or 1
    return [(name, round(count / total, 4)) for name, count in counts.most_common()]
