"""The base model when none is named: made once, in a process of its own so that the caller never imports torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.config import HustingsConfig, cache_dir
from deploy.errors import ModelError
from feedback.priority import short_waits
from train import convert


def resolve(config: HustingsConfig) -> str:
    """The model to serve and train: the configured one, else the default model, fetched and converted on first use.

    Raises:
        ModelError: a folder without a model, or the default model can't be made; the message says what to do.
    """
    if config.model is None:
        return str(ensure())
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no config.json: --model wants a Hugging Face model folder or a hub id")
        return str(folder.absolute())
    if folder.is_absolute() or config.model.startswith((".", "~")):
        raise ModelError(f"{folder} does not exist: --model wants a Hugging Face model folder or a hub id")
    return config.model


def default_folder() -> Path:
    """Where the default model lies, or will."""
    return convert.default_model_folder(cache_dir() / "models")


def ensure() -> Path:
    """The default model's folder; fetching and converting take about a minute, shown on the terminal."""
    folder = default_folder()
    if convert.is_converted(folder):
        return folder
    # Conversion needs torch and gigabytes for half a minute: a child gives them back when it ends.
    command = [sys.executable, "-m", "train.convert", str(folder.parent)]
    environment = {**os.environ, **short_waits(os.environ), "TRANSFORMERS_VERBOSITY": "error"}
    made = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if made.returncode != 0 or not convert.is_converted(folder):
        raise ModelError("the default model could not be made (the reason stands above); or name one with --model")
    return folder
