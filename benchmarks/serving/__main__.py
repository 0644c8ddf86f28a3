"""What serving costs beside the engine, in ratios of one run.

    python -m benchmarks.serving paired --model FOLDER   tokens a second and first token beside a raw `vllm serve`
    python -m benchmarks.serving rollouts --model FOLDER a person's first token with and without a trainer's rollouts
    python -m benchmarks.serving gateway                 latency beside LiteLLM's proxy, one instant backend behind both
    python -m benchmarks.serving swaps                   adapters changed under steady streams (tiny model)
    python -m benchmarks.serving streams                 500 streams at once on an instant engine, with a CPU profile

--baseline FILE writes the figures into a file of all sections, beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.serving.client import AskFailed
from benchmarks.serving.servers import StartFailed
from deploy.setup.environment import SetupFailed

SECTIONS = {"paired": 3, "rollouts": 4, "gateway": 2, "swaps": 10, "streams": 3}
"""Each section's rounds."""


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when a server or a request failed. A figure that misses its aim is told, not punished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=tuple(SECTIONS))
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a chat model (paired, rollouts)")
    parser.add_argument("--rounds", type=int, help="each side in turn so many times")
    parser.add_argument("--baseline", type=Path, help="JSON file to write the figures into")
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs and the profile; by default temporary")
    given = parser.parse_args(arguments)
    if given.section in {"paired", "rollouts"} and given.model is None:
        parser.error("--model is needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then too
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = import_module(f"benchmarks.serving.{given.section}")
        try:
            figures = bench.run(given.rounds or SECTIONS[given.section], folder, given.model)
        except (AskFailed, StartFailed, SetupFailed) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    found = {"machine": machine(), **figures}
    print(json.dumps(found, indent=1))
    lines: list[dict[str, Any]] = bench.rows(figures)
    print(table(lines))
    if given.baseline is not None:
        keep(given.baseline, given.section, found, lines)
    return 0


def machine() -> str:
    """What it ran on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}"


def table(lines: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = "| figure | measured | spread | aim | |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {line['what']} | {line['figure']:g} | {' to '.join(f'{x:g}' for x in line.get('interval', []))} |"
        f" {line['aim']} | {'reached' if line['reached'] else 'missed'} |"
        for line in lines
    )


def keep(path: Path, section: str, figures: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Write one section of the baseline file."""
    found = json.loads(path.read_text()) if path.exists() else {}
    found[section] = {"rows": lines, **figures}
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
