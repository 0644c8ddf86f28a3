"""Where everything lies in a data folder. One place, so that no other module builds such a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DataPaths:
    """The layout of docs/architecture.md below `root`."""

    root: Path

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the default ledger."""
        return f"sqlite:///{self.root / 'ledger.sqlite3'}"

    @property
    def secrets(self) -> Path:
        """Folder of the installation's secrets (mode 0700)."""
        return self.root / "secrets"

    @property
    def dataset(self) -> Path:
        """Folder of part files and snapshots."""
        return self.root / "dataset"

    @property
    def adapters(self) -> Path:
        """Folder of published adapters."""
        return self.root / "adapters"

    @property
    def checkpoints(self) -> Path:
        """Folder of whole models that full fine-tuning made; serving is started with one, never swaps it in."""
        return self.root / "checkpoints"

    @property
    def rollout_adapters(self) -> Path:
        """Folder of the trainer's passing adapters, loaded for rollouts only."""
        return self.root / "train" / "rollout-adapters"

    @property
    def train(self) -> Path:
        """Folder of cycles, checkpoints and reward models."""
        return self.root / "train"

    @property
    def review_pool(self) -> Path:
        """The pairs that the trainer has prepared for people to judge."""
        return self.root / "train" / "review" / "pool.json"

    @property
    def logs(self) -> Path:
        """Folder of the supervisor's log files."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Folder of what a running `hustings up` leaves for others: lock, addresses, resolved configuration."""
        return self.root / "run"

    def create(self) -> None:
        """Make every folder that isn't there."""
        for folder in (self.root, self.dataset, self.adapters, self.rollout_adapters, self.train, self.logs, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        self.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
