"""A whole Hustings, started by its own command line, as an operator would start it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
READY_S = 600.0
"""Half a minute on a quiet machine; minutes where others compute."""


class StackFailed(AssertionError):
    """The stack didn't do what was awaited; the message ends with what it last said."""


@dataclass
class Stack:
    """`hustings up` and what can be done to it."""

    url: str
    data_dir: Path
    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    @property
    def operator_token(self) -> str:
        return (self.data_dir / "secrets" / "operator_token").read_text().strip()

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60)

    def office(self) -> str | None:
        return self.get("/v1/loop")["office"]["adapter"]

    def phase(self) -> str:
        """What the trainer does now, from its own status: that can be read while serving is away."""
        status = self.data_dir / "train" / "status.json"
        return str(json.loads(status.read_text())["phase"]) if status.is_file() else "starting"

    def published(self) -> str:
        """The newest adapter's name; empty where there is none."""
        return max((folder.name for folder in (self.data_dir / "adapters").glob("policy-*")), default="")

    def until(self, what: str, condition: Callable[[], bool], timeout_s: float) -> float:
        """Wait for a condition of the running stack; returns the seconds that it took."""
        begun = time.monotonic()
        while time.monotonic() - begun < timeout_s:
            if self.process.poll() is not None:
                raise StackFailed(f"up ended with {self.process.returncode} while waiting for {what}\n{self.tail()}")
            try:
                if condition():
                    return time.monotonic() - begun
            except (httpx.TransportError, httpx.HTTPStatusError):
                pass
            threading.Event().wait(0.25)
        raise StackFailed(f"not within {timeout_s:.0f} s: {what}\n{self.tail()}")

    def child(self, verb: str) -> psutil.Process:
        """The process of one part: broker, serve, curate or train."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            line = " ".join(process.cmdline())
            if re.search(rf"deploy(?:\.cli)? .*\b{verb}\b|hustings {verb}\b", line) or (
                verb == "broker" and "--storage-engine" in line
            ):
                return process
        raise StackFailed(f"no process of {verb}\n{self.tail()}")

    def kill(self, verb: str) -> int:
        """kill -9 one part; returns the process id that it had."""
        victim = self.child(verb)
        victim.send_signal(signal.SIGKILL)
        victim.wait(timeout=10)
        return victim.pid

    def tail(self, lines: int = 60) -> str:
        return "".join(self.output[-lines:])

    def stop(self, timeout_s: float = 40.0) -> int:
        """Ctrl-C; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=timeout_s)


def command(*arguments: str) -> list[str]:
    """The command line of `hustings`, in this interpreter."""
    return [sys.executable, "-m", "deploy", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


@contextmanager
def running(data_dir: Path, model: Path, port: int, settings: Mapping[str, object]) -> Iterator[Stack]:
    """`hustings up` until the block ends; whatever is left is killed then."""
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    process = subprocess.Popen(
        command("up", "--port", str(port), "--data-dir", str(data_dir), "--model", str(model), *overrides),
        cwd=data_dir.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    stack = Stack(f"http://127.0.0.1:{port}", data_dir, process)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: stack.output.extend(iter(process.stdout.readline, "")), daemon=True)
    reader.start()
    try:
        stack.until("/readyz", lambda: httpx.get(f"{stack.url}/readyz", timeout=5).status_code == 200, READY_S)
        yield stack
    finally:
        everyone = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        try:
            stack.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for straggler in everyone:
            if straggler.is_running():
                straggler.kill()
        reader.join(timeout=5)
        process.stdout.close()
