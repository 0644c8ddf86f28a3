"""Runs of both sides: started one after the other, each in its own process, and kept as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peer.environment import Peer
from deploy.launch import preload
from feedback.priority import SHORT_WAITS

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
OLD_TRL = frozenset({"ppo", "losses"})


class RunFailed(Exception):
    """A side's process ended badly; its own last lines say why."""


def ours(what: str, job: Figures, work: Path) -> Figures:
    """Run a part of `benchmarks.peer.ours`."""
    return _run([sys.executable, "-m", "benchmarks.peer.ours", what], our_environment(), job, work)


def our_environment() -> dict[str, str]:
    """Of our side's processes: as the trainer has it under `hustings up`."""
    return {**os.environ, **SHORT_WAITS, **preload(openmp=False)}


def theirs(peer: Peer, script: str, job: Figures, work: Path) -> Figures:
    """Run a script of `theirs/` in the peer's environment; PPO under the TRL that has it."""
    return _run(peer.command(script), peer.environment(old_trl=script in OLD_TRL), job, work)


def _run(command: list[str], environment: dict[str, str], job: Figures, work: Path) -> Figures:
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        asked, answered, log = (Path(folder) / name for name in ("job.json", "answer.json", "log"))
        asked.write_text(json.dumps(job))
        with log.open("w") as output:
            command = [*command, str(asked), str(answered)]
            done = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
        if done.returncode != 0 or not answered.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RunFailed(f"{' '.join(command[:3])} ended with {done.returncode}:\n{tail}")
        figures: Figures = json.loads(answered.read_text())
    return figures


def keep(work: Path, bench: str, who: str, figures: Figures) -> None:
    """Append a run to the record, and print it."""
    row = {"bench": bench, "who": who, "at": round(time.time()), "load": round(os.getloadavg()[0], 2)}
    row |= {"commit": commit(), **figures}
    with (work / "runs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    shown = {k: v for k, v in row.items() if isinstance(v, int | float | str) and k != "at"}
    print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


def commit() -> str:
    """This code's commit, `+` after it where files were changed since; `unknown` without git."""
    told = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


def kept(work: Path) -> list[Figures]:
    """All runs on record."""
    path = work / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
