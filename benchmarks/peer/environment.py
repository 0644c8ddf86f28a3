"""TRL's own virtual environment, made from pinned lists, outside of the repository and of our own environment.

TRL wants another transformers than the engine, and its PPOTrainer lives only in an older TRL, which is installed in a
folder of its own beside the newer one.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.config import cache_dir
from deploy.launch import preload
from deploy.setup.environment import Pip, install_cpu_torch, make_venv, read_pins
from feedback.priority import SHORT_WAITS

HERE = Path(__file__).parent
LIST, PPO_LIST = HERE / "requirements.txt", HERE / "requirements-ppo.txt"
VARIABLE = "HUSTINGS_PEER"
"""Environment variable that names the folder of the peer's environment."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where the peer's environment is."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def old_trl(self) -> Path:
        """The TRL that still has PPOTrainer."""
        return self.folder / "trl-ppo"

    def ready(self) -> bool:
        """Whether a finished set-up of today's lists is there."""
        return self._stamp.is_file() and self._stamp.read_text() == _digest()

    def make(self) -> None:
        """Install everything; nothing where it is all there.

        Raises:
            SetupFailed: with pip's last error line.
        """
        if self.ready():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        venv = self.folder / "venv"
        if not self.python.exists():
            make_venv(venv)
        pip = Pip(venv)
        install_cpu_torch(pip)
        pip.install(["-r", str(LIST)], total=len(read_pins(LIST)))
        pip.install(["--target", str(self.old_trl), "--upgrade", "-r", str(PPO_LIST)], total=1)
        self._stamp.write_text(_digest())

    def command(self, script: str, *arguments: str) -> list[str]:
        """Command line of a script in `theirs/`."""
        return [str(self.python), str(HERE / "theirs" / f"{script}.py"), *arguments]

    def environment(self, *, old_trl: bool) -> dict[str, str]:
        """Environment of such a process: no way to a hub, the same allocator and the same waiting as ours."""
        found = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        found |= {**SHORT_WAITS, **preload(openmp=False), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        found |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
        return found | ({"PYTHONPATH": str(self.old_trl)} if old_trl else {})

    @property
    def _stamp(self) -> Path:
        return self.folder / "ready"


def default_folder() -> Path:
    """`$HUSTINGS_PEER`, else in the user's cache."""
    return Path(os.environ.get(VARIABLE) or cache_dir() / "bench" / "peer")


def _digest() -> str:
    text = b"".join(path.read_bytes() for path in (LIST, PPO_LIST))
    return hashlib.sha256(text + str(sys.version_info[:2]).encode()).hexdigest()
