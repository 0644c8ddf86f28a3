"""Which ledger a command works on: the one it was told, else that of the `up` which runs here, else the data folder's.

`hustings up --set feedback.ledger_url=...` tells only its own processes. A command beside it that took the folder's
would find nothing, and forget nobody.
"""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any

from deploy import presence
from deploy.config import HustingsConfig

if TYPE_CHECKING:
    from feedback.ledger import Ledger

RESOLVED = "resolved.toml"
"""What a running `up` was told, in the data folder's `run`: for its owner alone, as it may hold a password."""


def ledger_url(config: HustingsConfig) -> str:
    """SQLAlchemy URL of the ledger."""
    return config.feedback.ledger_url or _of_the_running(config) or config.paths.ledger_url


def open_ledger(config: HustingsConfig) -> Ledger:
    """The ledger.

    Raises:
        LedgerError: it can't be opened.
    """
    from feedback.ledger import Ledger

    return Ledger.open(ledger_url(config))


def gate(config: HustingsConfig) -> str:
    """`serve.releases.gate` of the `up` which runs here, else the configuration's."""
    found: str = _told(config).get("serve", {}).get("releases", {}).get("gate", config.serve.releases.gate)
    return found


def _of_the_running(config: HustingsConfig) -> str | None:
    found: str | None = _told(config).get("feedback", {}).get("ledger_url")
    return found


def _told(config: HustingsConfig) -> dict[str, Any]:
    """What the `up` which runs here was told; nothing where none runs, or it is somebody else's."""
    file = config.paths.run / RESOLVED
    if presence.read(config.paths) is None or not os.access(file, os.R_OK):
        return {}
    return tomllib.loads(file.read_text(encoding="utf-8"))
