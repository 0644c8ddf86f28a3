"""The supervisor, with small stand-in children."""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from deploy import supervisor
from deploy.child import ChildSpec, describe_status, telling_line
from deploy.console import Console, LogFile, lines_of, plain
from deploy.errors import ChildFailed
from deploy.supervisor import Backoff, Supervisor

# A child that says that it runs, and on SIGTERM that it stops.
POLITE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
print("bye", flush=True)
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
signal.pause()
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code, *arguments]


class Stage:
    """A supervisor under test, what it says, and a way to await a line."""

    def __init__(self, folder: Path, specs: list[ChildSpec], **options: object) -> None:
        self.text = io.StringIO()
        self.console = Console(self.text)
        self.pids: list[dict[str, int]] = []
        self.is_ready = asyncio.Event()
        self._seen: list[tuple[str, asyncio.Event]] = []
        line = self.console.line

        def watched(process: str, text: str) -> None:
            line(process, text)
            for wanted, event in self._seen:
                if wanted in f"{process}: {text}":
                    event.set()

        self.console.line = watched  # type: ignore[method-assign]
        options.setdefault("backoff", lambda: Backoff(first_s=0.01, longest_s=0.02))
        self.supervisor = Supervisor(
            specs,
            folder,
            self.console,
            on_ready=self.is_ready.set,
            on_started=self.pids.append,
            **options,  # type: ignore[arg-type]
        )

    async def until(self, wanted: str) -> None:
        if wanted in self.said():
            return
        event = asyncio.Event()
        self._seen.append((wanted, event))
        await asyncio.wait_for(event.wait(), timeout=20)

    def said(self) -> str:
        lines = self.text.getvalue().splitlines()
        return "\n".join(f"{line[:8].strip()}: {line[11:]}" for line in lines)


async def test_starts_merges_output_and_stops_in_reverse_order(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [ChildSpec("one", python(POLITE)), ChildSpec("two", python(POLITE))])
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    await stage.until("two: up")
    await asyncio.wait_for(stage.is_ready.wait(), 20)
    stage.supervisor.request_stop()
    await running
    said = stage.said()
    order = ["hustings: stopping two", "two: bye", "hustings: stopping one", "one: bye"]
    assert sorted(order, key=said.index) == order
    assert (tmp_path / "one.log").read_text(encoding="utf-8") == "up\nbye\n"


async def test_a_child_that_ends_is_started_again_and_the_reason_said(tmp_path: Path) -> None:
    mark = tmp_path / "second"
    code = "import pathlib, sys\np = pathlib.Path(sys.argv[1])\n"
    code += "if not p.exists():\n    p.touch()\n    print('lost my way', flush=True)\n    sys.exit(3)\n" + POLITE
    stage = Stage(tmp_path, [ChildSpec("one", python(code, str(mark)))])
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    stage.supervisor.request_stop()
    await running
    assert (
        "hustings: one ended with status 3 after 0 s; starting it again in 0.01 s; it said: lost my way" in stage.said()
    )


async def test_a_killed_child_is_started_again_and_its_own_children_are_cleared(tmp_path: Path) -> None:
    code = "import subprocess, sys\n"
    # the inner child is to outlive its parent, unless it is cleared: that is what is tested
    code += "inner = subprocess.Popen([sys.executable, '-S', '-c', 'import signal; signal.pause()'])\n"
    code += "print('inner', inner.pid, flush=True)\n" + POLITE
    stage = Stage(tmp_path, [ChildSpec("one", python(code))])
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    inner = psutil.Process(int(stage.said().split("inner ")[1].split("\n")[0]))
    os.kill(stage.pids[0]["one"], signal.SIGKILL)
    await stage.until("hustings: one was killed by signal 9, SIGKILL")
    await asyncio.to_thread(inner.wait, 20)
    while len(stage.pids) < 2:
        await asyncio.sleep(0)
    stage.supervisor.request_stop()
    await running
    assert stage.pids[1]["one"] != stage.pids[0]["one"]


async def test_an_essential_child_that_will_not_stay_up_ends_everything(tmp_path: Path) -> None:
    specs = [ChildSpec("good", python(POLITE)), ChildSpec("bad", python("print('no such model'); raise SystemExit(1)"))]
    stage = Stage(tmp_path, specs, give_up_after=3)
    with pytest.raises(
        ChildFailed, match=r"bad ended with status 1, 3 times in a row; it said: no such model .*bad\.log"
    ):
        await asyncio.wait_for(stage.supervisor.run(), 20)
    assert "good: bye" in stage.said() or "good: up" not in stage.said()


async def test_a_child_called_wrongly_is_not_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [ChildSpec("bad", python("raise SystemExit(2)"))])
    with pytest.raises(ChildFailed, match="status 2"):
        await asyncio.wait_for(stage.supervisor.run(), 20)
    assert len(stage.pids) == 1


async def test_what_others_do_without_may_be_impossible_to_start_for_a_while(tmp_path: Path) -> None:
    """As when there is no memory for a new process: the trainer waits, serving serves."""
    late = tmp_path / "late"
    specs = [ChildSpec("good", python(POLITE)), ChildSpec("late", [str(late)], essential=False)]
    stage = Stage(tmp_path, specs)
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("hustings: late can't be run")
    await stage.until("good: up")
    late.write_text(f"#!/bin/sh\nexec {shlex.join(python(POLITE))}\n")
    late.chmod(0o755)
    await stage.until("late: up")
    stage.supervisor.request_stop()
    await running


async def test_a_command_that_does_not_exist_is_one_clear_failure(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [ChildSpec("bad", [str(tmp_path / "nothing")])])
    with pytest.raises(ChildFailed, match="bad can't be run"):
        await asyncio.wait_for(stage.supervisor.run(), 20)


async def test_a_child_that_ignores_the_request_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [ChildSpec("one", python(STUBBORN), stop_grace_s=0.05)])
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    stage.supervisor.request_stop()
    await asyncio.wait_for(running, 20)
    assert "one did not stop within 0.05 s; killing it" in stage.said()


async def test_a_second_request_kills_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [ChildSpec("one", python(STUBBORN), stop_grace_s=600)])
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    stage.supervisor.request_stop()
    await stage.until("stopping one")
    stage.supervisor.request_stop()
    await asyncio.wait_for(running, 20)


async def test_a_child_waits_for_those_it_needs(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def ready() -> None:
        await gate.wait()

    specs = [ChildSpec("one", python(POLITE), ready=ready), ChildSpec("two", python(POLITE), after_ready=("one",))]
    stage = Stage(tmp_path, specs)
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    assert all("two" not in pids for pids in stage.pids)
    assert not stage.is_ready.is_set()
    gate.set()
    await stage.until("two: up")
    stage.supervisor.request_stop()
    await running


async def test_stopping_while_a_child_still_waits_leaves_it_unstarted(tmp_path: Path) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    specs = [ChildSpec("one", python(POLITE), ready=never), ChildSpec("two", python(POLITE), after_ready=("one",))]
    stage = Stage(tmp_path, specs)
    running = asyncio.create_task(stage.supervisor.run())
    await stage.until("one: up")
    stage.supervisor.request_stop()
    await asyncio.wait_for(running, 20)
    assert "two: " not in stage.said()


SUPERVISED = """
import asyncio, sys
from pathlib import Path
from deploy.child import ChildSpec, telling_line
from deploy.console import Console
from deploy.supervisor import Supervisor
specs = [ChildSpec(name, [sys.executable, "-S", "-E", "-c", code], stop_grace_s=0.2)
         for name, code in zip(("polite", "stubborn"), sys.argv[2:], strict=True)]
asyncio.run(Supervisor(specs, Path(sys.argv[1]), Console()).run())
"""


def supervised(folder: Path, *before: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A supervisor in a process of its own, and all the processes that it has."""
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests by nohup hands an ignored one on
    try:
        process = subprocess.Popen(
            [*before, sys.executable, "-c", SUPERVISED, str(folder), POLITE, STUBBORN],
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, ours)
    assert process.stdout is not None
    ups = 0
    for line in process.stdout:
        ups += line.rstrip().endswith("| up")
        if ups == 2:
            break
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_orphan_is_left_however_the_supervisor_ends(tmp_path: Path, number: signal.Signals) -> None:
    process, children = supervised(tmp_path)
    assert len(children) == 3
    process.send_signal(number)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    status = process.wait(20)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert process.stdout is not None
    process.stdout.close()


def test_who_started_it_by_nohup_may_close_the_terminal(tmp_path: Path) -> None:
    process, children = supervised(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    _, alive = psutil.wait_procs(children, timeout=1)
    assert set(alive) == set(children)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_waiting_doubles_up_to_the_longest_and_starts_anew_after_a_long_run() -> None:
    backoff = Backoff(first_s=1, longest_s=5, steady_s=60)
    assert [backoff.after(uptime) for uptime in (0, 0, 0, 0, 61, 0)] == [1, 2, 4, 5, 1, 2]


def test_a_process_that_fails_for_days_is_still_started_again():
    backoff = Backoff()
    assert [backoff.after(uptime_s=1) for _ in range(3_000)][-1] == 60


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "ended"), (3, "ended with status 3"), (-15, "was killed by signal 15, SIGTERM"), (-99, "signal 99, unknown")],
)
def test_how_a_process_ended_is_said_in_words(status: int, words: str) -> None:
    assert words in describe_status(status)


@pytest.mark.parametrize(
    ("raw", "lines", "rest"),
    [
        (b"a\nb", ["a"], b"b"),
        (b"10%\r20%\r30%\nx", ["30%"], b"x"),
        (b"dos\r\n", ["dos"], b""),
        (b"\xff\n", ["\ufffd"], b""),
    ],
)
def test_output_is_split_into_lines(raw: bytes, lines: list[str], rest: bytes) -> None:
    assert lines_of(raw) == (lines, rest)


def test_files_hold_no_colours_and_are_rotated(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", rotate_bytes=10)
    for number in range(9):
        log.write(f"\x1b[32mline {number} long\x1b[0m")
    log.close()
    assert (tmp_path / "x.log.1").read_text(encoding="utf-8") == "line 8 long\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert plain("\x1b[1;31mred\x1b[0m") == "red"


async def test_a_log_that_cannot_be_rotated_does_not_cut_off_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full just then: the next line met a closed file, and the process a pipe that nobody read."""
    monkeypatch.setattr(supervisor, "LogFile", partial(LogFile, rotate_bytes=10))
    talking = "import time\nfor n in range(2000): print(f'line {n} of very many', flush=True)\n" + POLITE
    stage = Stage(tmp_path, [ChildSpec("talker", python(talking))])
    (tmp_path / "talker.log.1").mkdir()
    (tmp_path / "talker.log.1" / "in the way").touch()
    (tmp_path / "talker.log.2").mkdir()
    (tmp_path / "talker.log.2" / "in the way").touch()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until("talker: up")
    stage.supervisor.request_stop()
    await run
    assert "talker: line 1999 of very many" in stage.said()
    assert stage.said().count("can't be written") >= 1
    assert "starting it again" not in stage.said()


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert not Console(io.StringIO()).coloured
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Console(io.StringIO()).coloured


def test_a_terminal_that_went_away_stops_nothing() -> None:
    gone = io.StringIO()
    console = Console(gone)
    gone.close()
    console.say("nobody reads this")


@pytest.mark.parametrize(
    ("tail", "telling"),
    [
        ([], ""),
        (["one", "two"], "two"),
        (
            ["12:00:00 [error    ] can't start  reason=port", "12:00:01 [info     ] stopped", "bye"],
            "12:00:00 [error    ] can't start  reason=port",
        ),
        (
            ['{"level": "error", "event": "gone"}', '{"level": "info", "event": "stopped"}'],
            '{"level": "error", "event": "gone"}',
        ),
    ],
)
def test_the_last_error_tells_why_a_process_ended(tail: list[str], telling: str) -> None:
    assert telling_line(tail) == telling
