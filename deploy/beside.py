"""What the `up` which runs on a data folder was told, for commands beside it.

`hustings up --set feedback.privacy...` tells only its own processes. A command beside it that stored or weighed
people's words by other settings would mix what was done by both in one dataset.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import BaseModel

from deploy import presence
from deploy.config import HustingsConfig, load

RESOLVED = "resolved.toml"
"""What a running `up` was told, in the data folder's `run`: for its owner alone, as it may hold a password."""


def told(config: HustingsConfig) -> dict[str, Any]:
    """What the `up` which runs here was told; nothing where none runs, or it is somebody else's."""
    file = config.paths.run / RESOLVED
    if presence.read(config.paths) is None or not os.access(file, os.R_OK):
        return {}
    return tomllib.loads(file.read_text(encoding="utf-8"))


def load_beside(
    file: Path | None, overrides: Sequence[str], direct: Mapping[str, Any], section: Literal["privacy", "voters"]
) -> HustingsConfig:
    """The configuration of a command that stores or weighs votes: `load`, but where an `up` runs on the data folder,
    with its `[feedback.<section>]`, whatever file and variables say. `--set` outweighs it.

    Where this command and the `up` were told, and not the same, a line on stderr says what counts.

    Raises:
        ConfigError: as `load`.
    """
    own = load(file, overrides, direct)
    mine: BaseModel = getattr(own.feedback, section)
    known = type(mine).model_fields  # an `up` of another version may have been told more
    theirs = {key: value for key, value in told(own).get("feedback", {}).get(section, {}).items() if key in known}
    if not theirs and presence.read(own.paths) is not None:
        _note(
            f"what the `hustings up` that runs here was told can't be read; [feedback.{section}] is this command's own"
        )
    by_hand = {override.partition("=")[0].strip() for override in overrides}
    for name, value in theirs.items():
        key, ours = f"feedback.{section}.{name}", getattr(mine, name)
        if name not in mine.model_fields_set or value == (list(ours) if isinstance(ours, tuple) else ours):
            continue
        if key in by_hand:
            _note(f"{key} is {ours!r} for this command; the `hustings up` that runs here goes by {value!r}")
        else:
            _note(
                f"{key} is {value!r}, as the `hustings up` that runs here was told, and not {ours!r}, as this "
                "configuration says; start `up` again to have that, or give --set"
            )
    running = {f"feedback.{section}.{name}": value for name, value in theirs.items()}
    return load(file, overrides, direct, running=running)


def _note(line: str) -> None:
    typer.echo(f"hustings: {line}", err=True)
