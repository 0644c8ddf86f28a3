"""LiteLLM's proxy in a virtual environment of its own, made from a pinned list in the user's cache."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from deploy.config import cache_dir
from deploy.setup.environment import Pip, make_venv, read_pins

LIST = Path(__file__).parent / "requirements-litellm.txt"
VARIABLE = "HUSTINGS_LITELLM"
"""Environment variable that names the folder of the environment."""


def default_folder() -> Path:
    """`$HUSTINGS_LITELLM`, else in the user's cache."""
    return Path(os.environ.get(VARIABLE) or cache_dir() / "bench" / "litellm")


def make(folder: Path) -> Path:
    """Install what isn't there; returns the proxy's command.

    Raises:
        SetupFailed: with pip's last error line.
    """
    venv, stamp = folder / "venv", folder / "ready"
    wanted = hashlib.sha256(LIST.read_bytes() + str(sys.version_info[:2]).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        if not (venv / "bin" / "python").exists():
            make_venv(venv)
        Pip(venv).install(["-r", str(LIST)], total=len(read_pins(LIST)))
        stamp.write_text(wanted)
    return venv / "bin" / "litellm"


def configuration(backend: str, model: str) -> str:
    """Its configuration file: one model at the backend, and nothing that would slow it down."""
    return f"""\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {backend}/v1
      api_key: none
litellm_settings:
  telemetry: false
  request_timeout: 60
  set_verbose: false
  json_logs: false
general_settings:
  disable_spend_logs: true
  disable_error_logs: true
"""


def environment() -> dict[str, str]:
    """As its documentation advises for production: no debug logs, no `.env`, prices from the package, nothing sent."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no key to check: as ours, and quicker
        "NO_PROXY": "127.0.0.1",
    }
