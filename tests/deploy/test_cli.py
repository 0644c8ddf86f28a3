"""The command line: help, one-line failures, presence and ports."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from deploy import cli, presence, up
from deploy.config import load, to_toml
from deploy.default_model import resolve
from deploy.errors import AlreadyRunning, ModelError, PortInUse
from deploy.launch import common_environment, preload, serve_url, specs
from deploy.ports import free_port, require_free
from deploy.up import _write_privately
from feedback.paths import DataPaths
from feedback.simulator import SimulateConfig
from feedback.simulator.client import ServerGone

VERBS = ["up", "serve", "curate", "train", "simulate", "export", "replay", "releases", "doctor", "config"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; the exit status."""
    monkeypatch.setattr(sys, "argv", ["hustings", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HUSTINGS_DEBUG", raising=False)


def test_help_lists_every_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(f" {verb} " in text for verb in VERBS)


def test_every_verb_that_reads_the_configuration_takes_any_key() -> None:
    def verbs(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
        for verb, inner in getattr(command, "commands", {}).items():
            yield from verbs(inner, f"{name} {verb}")
        yield name, {flag for parameter in command.params for flag in parameter.opts}

    found = dict(verbs(typer.main.get_command(cli.app), "hustings"))
    assert len(found) > 20
    assert [name for name, flags in found.items() if "--config" in flags and "--set" not in flags] == []


RELEASES = [f"releases {verb}" for verb in ("list", "history", "promote", "reject", "rollback", "pause", "resume")]


@pytest.mark.parametrize("verb", [*VERBS, *RELEASES])
def test_every_verb_teaches_with_an_example(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *verb.split(), "--help") == 0
    text = capsys.readouterr().out
    assert verb in {"doctor", "releases"} or f"hustings {verb}" in text


@pytest.mark.parametrize(
    ("arguments", "status", "fragment"),
    [
        (["up", "--set", "serve.prt=1"], 2, "did you mean serve.port?"),
        (["config", "--config", "nowhere.toml"], 2, "nowhere.toml"),
        (["curate"], 2, "no Kafka is named"),
        (["replay"], 2, "no Kafka is named"),
        (["releases", "rollback", "--url", "http://127.0.0.1:9"], 1, "does not answer at http://127.0.0.1:9"),
        (["simulate", "--noise", "7"], 2, "--noise"),
        (["up", "--model", "./nothing"], 2, "does not exist"),
    ],
)
def test_failures_are_one_line(
    arguments: list[str],
    status: int,
    fragment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for port in ("feedback.curator_metrics_port", "train.schedule.metrics_port", "serve.port"):
        if arguments[0] == "up":
            arguments = [*arguments, "--set", f"{port}=0"]
    assert run(monkeypatch, *arguments) == status
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
    assert error.startswith("hustings: ")


def test_people_who_wait_for_serving_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(config: SimulateConfig) -> None:
        raise ServerGone(f"{config.url} gave no answer")

    monkeypatch.setattr("feedback.simulator.run", away)
    assert run(monkeypatch, "simulate", "--url", "http://127.0.0.1:9") == 1
    assert "serving isn't ready at http://127.0.0.1:9; waiting 300 s for it" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(cli, "to_toml", broken)
    monkeypatch.setattr(sys, "argv", ["hustings", "config"])
    with pytest.raises(KeyError):
        cli.main()


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "to_toml", full)
    assert run(monkeypatch, "config") == 1
    assert "No space left on device" in capsys.readouterr().err


def test_config_prints_the_resolved_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hustings", "config", "--set", "serve.port=8765"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "port = 8765" in capsys.readouterr().out


def test_config_shows_no_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HUSTINGS_LEDGER_URL", "postgresql://ann:hunter2@db/h")
    assert run(monkeypatch, "config", "--explain") == 0
    printed = capsys.readouterr()
    assert "postgresql://ann:***@db/h" in printed.out
    assert "hunter2" not in printed.out + printed.err


def test_help_answers_without_torch_or_vllm() -> None:
    code = "import sys, deploy.cli; assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_an_interrupt_while_the_command_is_loaded_is_quiet() -> None:
    code = """
import sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "deploy.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from deploy.__main__ import main
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, b"")


@pytest.mark.parametrize("first", [True, False])
def test_sigterm_ends_a_containers_first_process_while_it_is_still_loading(*, first: bool) -> None:
    """Seen from outside both end at once; whether a handler does it tells the status: the kernel's own is negative."""
    code = f"""
import os, signal, sys

class Loading:
    def find_spec(self, name, *_):
        if name == "deploy.cli":
            print("loading", flush=True)
            signal.alarm(60)  # so long at most, should the test's signal be ignored
            signal.pause()

sys.meta_path.insert(0, Loading())
os.getpid = lambda: {1 if first else 2}
from deploy.__main__ import main
main()
"""
    folder = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.terminate()
        assert process.wait(30) == (128 + signal.SIGTERM if first else -signal.SIGTERM)


def test_a_full_disk_ends_nothing_when_a_process_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`up` notes each start in its data folder; without room it says so, and all goes on."""

    class Starts:
        def __init__(self, *_: object, on_started: Callable[[dict[str, int]], None], **__: object) -> None:
            self.on_started = on_started

        async def run(self) -> None:
            self.on_started({"serve": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(up, "Supervisor", Starts)
    monkeypatch.setattr(up, "resolve", lambda _: "model")
    monkeypatch.setattr(presence, "write", full)
    monkeypatch.setattr(up, "_require_ports", lambda _: None)
    up.run(load(direct={"data_dir": tmp_path, "feedback.kafka": "kafka:9092"}, environment={}))
    told = capsys.readouterr().out
    assert "can't be written (No space left on device)" in told
    assert "all stopped" in told


def test_a_second_up_on_a_data_folder_is_refused_and_the_first_named(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path / "x")
    with presence.hold(paths), pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"), presence.hold(paths):
        pass
    with presence.hold(paths):
        pass


def test_others_find_a_running_up_and_no_dead_one(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path / "x")
    assert presence.read(paths) is None
    with presence.hold(paths):
        here = presence.Presence(os.getpid(), "http://127.0.0.1:1", "127.0.0.1:2", {"serve": 3})
        presence.write(paths, here)
        assert presence.read(paths) == here
        ended = subprocess.Popen(["true"])
        ended.wait()
        presence.write(paths, presence.Presence(ended.pid, "", "", {}))
        assert presence.read(paths) is None
        presence.write(paths, here)
    assert presence.read(paths) is None


def test_a_process_that_has_the_number_of_an_up_that_was_killed_is_none(tmp_path: Path) -> None:
    """After a new start of the machine, or in a container where it always is number 1."""
    paths = DataPaths(tmp_path / "x")
    with presence.hold(paths):
        pass
    presence.write(paths, presence.Presence(os.getpid(), "http://127.0.0.1:1", "127.0.0.1:2", {}))
    assert presence.read(paths) is None


def test_asking_whether_one_runs_keeps_none_from_starting(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path / "x")
    with presence.hold(paths):
        presence.write(paths, presence.Presence(os.getpid(), "", "", {}))
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            presence.write(paths, presence.Presence(os.getpid(), "", "", {}))
            presence.read(paths)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(50):
            with presence.hold(paths):
                pass
    finally:
        stop.set()
        asking.join()


def test_an_address_that_is_not_ours_is_not_called_in_use() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(PortInUse, match=f"nothing can listen on {host} here"):
            require_free(host, 8000, "choose another")


def test_a_port_in_use_names_who_holds_it() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} .*process {os.getpid()}.*choose another"):
            require_free("127.0.0.1", port, "choose another")
    require_free("127.0.0.1", free_port(), "")


def test_a_folder_without_a_model_is_refused_and_a_hub_id_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(load(direct={"model": str(tmp_path)}))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert resolve(load(direct={"model": str(tmp_path)})) == str(tmp_path)
    assert resolve(load(direct={"model": "some/model"})) == "some/model"


def test_children_start_in_order_and_wait_passively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    config = load(direct={"feedback.kafka": "127.0.0.1:9092"})
    children = specs(config, tmp_path / "c.toml", broker_port=9092, say=print, coloured=False)
    assert [child.name for child in children] == ["broker", "serve", "curate", "train"]
    for child in children[1:]:
        assert child.environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert child.environment["GOMP_SPINCOUNT"] == "3000"  # some 30 us, then asleep
        assert child.environment["KMP_BLOCKTIME"] == "0"
        assert str(tmp_path / "c.toml") in child.command
    assert children[3].after_ready == ("serve",)
    outside = specs(config, tmp_path / "c.toml", broker_port=None, say=print, coloured=False)
    assert [child.name for child in outside] == ["serve", "curate", "train"]
    assert outside[0].after_ready == ()


def test_children_are_as_up_was_told_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up --port 8001 --data-dir X` beside variables that say otherwise: serving listened and wrote elsewhere."""
    given = {"HUSTINGS_SERVE_PORT": "8000", "HUSTINGS_DATA_DIR": "/elsewhere", "HUSTINGS_MODEL": "other"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wanted = load(
        direct={"serve.port": 8001, "data_dir": tmp_path / "x", "model": "some/model", "feedback.kafka": "k:1"}
    )
    file = tmp_path / "resolved.toml"
    _write_privately(file, to_toml(wanted))
    assert file.stat().st_mode & 0o777 == 0o600
    for child in specs(wanted, file, broker_port=None, say=print, coloured=False):
        environment = {**os.environ, **child.environment}
        assert load(file, environment=environment) == wanted


def test_what_the_caller_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("LD_PRELOAD", "/mine.so")
    found = common_environment(load(), coloured=False)
    assert not found.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # a spin count would overrule it
    assert preload(openmp=True) == {}


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_serving_is_reached_on_this_machine(host: str, url: str) -> None:
    assert serve_url(load(direct={"serve.host": host})) == url
