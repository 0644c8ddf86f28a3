"""Which base model this is: the trainer writes it into an adapter's manifest, serving compares it with its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

_PASSING_KEYS = ("_name_or_path", "_model_name_or_path", "transformers_version")
"""Parts of config.json that change without the model changing."""


class ModelFolderError(ValueError):
    """There is no model where one was said to be; the message says what to give instead."""


def model_folder(model: str) -> Path:
    """The folder of a model: a path as it is, a hub id as the hub's cache on this machine has it.

    Raises:
        ModelFolderError: neither is there.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cached = home / "hub" / f"models--{model.replace('/', '--')}"
    try:
        found = cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
    except OSError as error:
        raise ModelFolderError(f"{model} is neither a folder nor in the hub's cache; give a model folder") from error
    if not found.is_dir():
        raise ModelFolderError(f"{found} is missing; fetch {model} again, or give a model folder")
    return found


def base_fingerprint(folder: Path) -> str:
    """Sha256 over the architecture (config.json without names and versions) and the weight files' bytes.

    Raises:
        ModelFolderError: the folder has no readable config.json.
    """
    total = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{folder} has no readable config.json; give a Hugging Face model folder") from error
    for key in _PASSING_KEYS:
        config.pop(key, None)
    total.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        total.update(file.name.encode())
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What an adapter is: the files of a PEFT folder that say how it acts."""


def adapter_digest(folder: Path) -> str:
    """Sha256 over an adapter folder's configuration and weights.

    Raises:
        OSError: one of them can't be read.
    """
    return content_digest([(folder / name).read_bytes() for name in ADAPTER_FILES])


def content_digest(contents: Iterable[bytes]) -> str:
    """Sha256 over contents and where each ends."""
    total = hashlib.sha256()
    for content in contents:
        total.update(len(content).to_bytes(8, "big"))
        total.update(content)
    return total.hexdigest()
