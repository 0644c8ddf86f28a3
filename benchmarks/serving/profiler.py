"""A sampling profiler: where the process's processor time goes, at a cost of about one part in a hundred.

A timer that counts processor time interrupts the main thread, and the Python stack of that moment is counted. C code
counts for the Python function that called it. cProfile would slow each call down, and the short ones most.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from types import FrameType

EVERY_S = 0.002
Stack = tuple[str, ...]


class Profiler:
    """Counts stacks, outermost function first."""

    def __init__(self) -> None:
        self.running = False
        self._stacks: Counter[Stack] = Counter()

    def start(self) -> None:
        """Begin anew. Main thread only."""
        self._stacks.clear()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        self.running = True

    def stop(self) -> None:
        """End; what was counted stays."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        self.running = False

    def folded(self) -> str:
        """A line a stack, as flame graph tools read it: `outer;inner count`."""
        return "".join(f"{';'.join(stack)} {count}\n" for stack, count in self._stacks.most_common())

    def _sample(self, number: int, frame: FrameType | None) -> None:
        del number
        stack: list[str] = []
        while frame is not None:
            code = frame.f_code
            stack.append(f"{module_of(code.co_filename)}:{code.co_qualname}")
            frame = frame.f_back
        self._stacks[tuple(reversed(stack))] += 1


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


def within(stacks: Counter[Stack], names: Iterable[str]) -> list[tuple[str, float]]:
    """Share of the time in each of these functions and what they call; a name is the end of a function's."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        for name in names:
            if any(each.endswith(name) for each in stack):
                found[name] += count
    return _shares(found, stacks)


def by_package(stacks: Counter[Stack]) -> list[tuple[str, float]]:
    """Share of the time in each package's own functions."""
    own: Counter[str] = Counter()
    for stack, count in stacks.items():
        own[stack[-1].partition(":")[0].partition(".")[0]] += count
    return _shares(own, stacks)


def _shares(counts: Counter[str], stacks: Counter[Stack]) -> list[tuple[str, float]]:
    total = sum(stacks.values()) or 1
    return [(name, round(count / total, 4)) for name, count in counts.most_common()]
