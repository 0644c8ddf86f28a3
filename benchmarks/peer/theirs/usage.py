"""Wall and processor time of a span, what others took of the machine meanwhile, and peak memory (Linux, both sides)."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Span:
    """Begins when made; `done` tells."""

    def __init__(self) -> None:
        self._wall, self._own, self._machine = time.perf_counter(), _own(), _machine()

    def done(self) -> dict[str, float]:
        """`wall_s`, `cpu_s` of this process, `others_cpu_s` of all other processes, `steal_s` of the hypervisor."""
        wall, own = time.perf_counter() - self._wall, _own() - self._own
        busy, steal = (now - then for now, then in zip(_machine(), self._machine))  # noqa: B905 - two and two
        figures = {"wall_s": wall, "cpu_s": own, "others_cpu_s": max(0.0, busy - own), "steal_s": steal}
        return {name: round(value, 3) for name, value in figures.items()}


def peak_gib() -> float:
    """Most resident memory of this process so far (VmHWM, which begins anew with each program)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 2**20, 3)
    raise RuntimeError("/proc/self/status has no VmHWM: these benchmarks want Linux")


def job() -> dict[str, Any]:
    """The job file named first on the command line."""
    found: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return found


def answer(figures: dict[str, Any]) -> None:
    """Write the figures to the file named second."""
    Path(sys.argv[2]).write_text(json.dumps(figures) + "\n")


def _own() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _machine() -> tuple[float, float]:
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    hertz = os.sysconf("SC_CLK_TCK")
    return (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / hertz, ticks[7] / hertz
