"""Makes the virtual environment from the pinned lists. Standard library only: it runs before anything is installed.

Every list is installed with --no-deps: a complete pinned list needs no resolver, and the engine's own requirements
would bring CUDA builds of torchvision, torchaudio and torchcodec that break transformers beside a CPU torch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "deploy" / "requirements"
PYTHON_VERSION = ".".join(map(str, sys.version_info[:3]))
CPU_TORCH = "torch==2.13.0+cpu"
# PyTorch publishes its CPU builds on its own index only; it is asked when the configured indexes have none.
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_MB = {"cpu": 5_000, "cuda": 16_000}


class SetupFailed(Exception):
    """The environment could not be made; the message is one line that says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environment, or with --is-done say (exit status 0 or 1) whether it is up to date."""
    parser = argparse.ArgumentParser(prog="setup")
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--purpose", choices=("run", "test"), default="run")
    parser.add_argument("--is-done", action="store_true")
    options = parser.parse_args(arguments)
    target = (ROOT / options.venv).resolve()
    flavour = engine_flavour()
    wanted = stamp(flavour, options.purpose)
    if options.is_done:
        return 0 if is_done(target, flavour, options.purpose) else 1
    try:
        make(target, flavour, options.purpose)
    except SetupFailed as error:
        say(f"failed: {error}")
        return 1
    stamp_file(target, options.purpose).write_text(wanted, encoding="utf-8")
    return 0


def engine_flavour() -> str:
    """ "cuda" where an NVIDIA driver answers, else "cpu". HUSTINGS_FLAVOUR overrides."""
    forced = os.environ.get("HUSTINGS_FLAVOUR")
    if forced:
        if forced not in NEEDED_MB:
            raise SystemExit(f"setup: HUSTINGS_FLAVOUR is {forced!r}; it may be cpu or cuda")
        return forced
    probe = shutil.which("nvidia-smi")
    if probe is None:
        return "cpu"
    try:
        answer = subprocess.run([probe, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if answer.returncode == 0 and "GPU" in answer.stdout else "cpu"


def lists(flavour: str, purpose: str) -> list[Path]:
    """The requirement files to install, in order."""
    names = ["base", flavour, *(["dev"] if purpose == "test" else [])]
    return [REQUIREMENTS / f"{name}.txt" for name in names]


def stamp(flavour: str, purpose: str) -> str:
    """A digest of everything that decides what the environment holds."""
    digest = hashlib.sha256(f"{flavour} {purpose} {sys.version_info[:3]} {ROOT}".encode())
    for path in (*lists(flavour, purpose), ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamp_file(target: Path, purpose: str) -> Path:
    """Where the digest of a finished set-up is kept."""
    return target / f".hustings-{purpose}"


def is_done(target: Path, flavour: str, purpose: str) -> bool:
    """Whether a finished set-up of this very state is there; one for tests does for running too."""
    for candidate in {purpose, "test"}:
        file = stamp_file(target, candidate)
        if file.is_file() and file.read_text(encoding="utf-8") == stamp(flavour, candidate):
            return True
    return False


def make(target: Path, flavour: str, purpose: str) -> None:
    """Install everything into `target`, saying how far it is."""
    started = time.monotonic()
    files = lists(flavour, purpose)
    pins = [pin for file in files for pin in read_pins(file)]
    steps = 4 if flavour == "cpu" else 3
    check_disk(target, flavour)
    say(f"[1/{steps}] a virtual environment in {shown(target)} (Python {PYTHON_VERSION}, engine build: {flavour})")
    for purpose_name in ("run", "test"):
        stamp_file(target, purpose_name).unlink(missing_ok=True)
    if not has_pip(target):
        make_venv(target)
    pip = Pip(target)
    if flavour == "cpu":
        say(f"[2/{steps}] {CPU_TORCH} (about 190 MB)")
        install_cpu_torch(pip)
    say(f"[{steps - 1}/{steps}] {len(pins)} pinned packages; the log is {shown(pip.log)}")
    pip.install([argument for file in files for argument in ("-r", str(file))], total=len(pins))
    say(f"[{steps}/{steps}] Hustings itself")
    pip.install(["--no-build-isolation", "--editable", str(ROOT)], total=1)
    say(f"ready in {time.monotonic() - started:.0f} s")


def has_pip(target: Path) -> bool:
    """Whether the environment is there and whole: one whose making was broken off has a Python without pip."""
    python = target / "bin" / "python"
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def make_venv(target: Path) -> None:
    """A fresh virtual environment with pip, in place of what a broken off set-up left there."""
    try:
        venv.create(target, with_pip=True, clear=(target / "pyvenv.cfg").exists())
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise SetupFailed(
            f"no virtual environment could be made ({error}); on Debian and Ubuntu: apt-get install "
            f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        ) from error


def install_cpu_torch(pip: Pip) -> None:
    """The CPU build from the configured indexes, else from PyTorch's own."""
    try:
        pip.install(["--retries", "0", CPU_TORCH], total=1)
    except SetupFailed:
        say("      not on the configured indexes; asking PyTorch's own index of CPU builds")
        pip.install(["--index-url", PYTORCH_CPU_INDEX, CPU_TORCH], total=1)  # PyTorch has CPU builds nowhere else


def check_disk(target: Path, flavour: str) -> None:
    """Fail early and plainly rather than in the middle of an unpacking."""
    if (target / "bin" / "python").exists():
        return
    there = next(path for path in target.parents if path.exists())
    free_mb = shutil.disk_usage(there).free // 1_000_000
    if free_mb < NEEDED_MB[flavour]:
        raise SetupFailed(
            f"{target.parent} has {free_mb} MB free and the {flavour} environment needs about {NEEDED_MB[flavour]} MB; "
            "make room, or put it elsewhere with `make VENV=/other/disk/venv …`"
        )


def read_pins(file: Path) -> list[str]:
    """The pins of a list, without comments."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


class Pip:
    """The environment's own pip, its output in a log and its progress on one line."""

    def __init__(self, target: Path) -> None:
        self.log = target / "setup.log"
        self._command = [str(target / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--no-input"]
        self._command += ["--disable-pip-version-check", "--progress-bar", "off"]

    def install(self, arguments: Iterable[str], total: int) -> None:
        """Run one install.

        Raises:
            SetupFailed: with pip's own last error line and where the rest stands.
        """
        tail: list[str] = []
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            assert process.stdout is not None
            progress = Progress(total)
            for line in process.stdout:
                log.write(line)
                tail = [*tail[-40:], line.strip()]
                progress.see(line)
            progress.end()
        if process.wait() != 0:
            raise SetupFailed(f"{reason(tail)} (all of it: {shown(self.log)}; `make` again goes on from here)")


class Progress:
    """Counts packages as pip meets them: a moving line on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._seen = 0
        self._shown = 0.0
        self._live = sys.stdout.isatty()

    def see(self, line: str) -> None:
        """Take one line of pip's output."""
        if self._total == 1:
            return
        if line.startswith(("Collecting ", "Requirement already satisfied", "Obtaining ")):
            self._seen = min(self._seen + 1, self._total)
            self._show(f"      {self._seen}/{self._total} {package_of(line)}")
        elif line.startswith("Installing collected packages"):
            self._show(f"      unpacking {self._total} packages (a minute or two)", force=True)

    def _show(self, text: str, force: bool = False) -> None:
        if self._live:
            sys.stdout.write(f"\r\033[K{text}")
            sys.stdout.flush()
        elif force or time.monotonic() - self._shown > 15:
            self._shown = time.monotonic()
            say(text)

    def end(self) -> None:
        """Leave the line clean."""
        if self._live:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()


def package_of(line: str) -> str:
    """The package's name in a line of pip's output."""
    named = re.search(r"(?:Collecting|satisfied:|Obtaining) ([A-Za-z0-9._-]+)", line)
    return named.group(1) if named else ""


def reason(tail: Sequence[str]) -> str:
    """The line of pip's output that a person needs."""
    joined = "\n".join(tail)
    if "No space left on device" in joined:
        return "the disk is full: make room (pip's cache: `pip cache purge`) and run make again"
    errors = [line.removeprefix("ERROR: ") for line in tail if line.startswith("ERROR:")]
    if any("No matching distribution" in line for line in errors):
        missing = next(line for line in errors if "No matching distribution" in line)
        return f"{missing}: no wheel of that version for Python {PYTHON_VERSION} on {os.uname().machine} within reach"
    return errors[0] if errors else (tail[-1] if tail else "pip gave no reason")


def shown(path: Path) -> str:
    """A path as short as it can be said from the repository's root."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def say(text: str) -> None:
    """One line to the terminal."""
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
