"""Which ledger a command works on: the one it was told, else that of the `up` which runs here, else the data folder's.

`hustings up --set feedback.ledger_url=...` tells only its own processes. A command beside it that took the folder's
would find nothing, and forget nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy import beside
from deploy.config import HustingsConfig

if TYPE_CHECKING:
    from feedback.ledger import Ledger


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
    found: str = beside.told(config).get("serve", {}).get("releases", {}).get("gate", config.serve.releases.gate)
    return found


def _of_the_running(config: HustingsConfig) -> str | None:
    found: str | None = beside.told(config).get("feedback", {}).get("ledger_url")
    return found
