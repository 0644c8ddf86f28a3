"""What the benchmarks are given, looked at before hours of work begin: folders, files, tastes, settings, caches."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.files import write_text


def model_folder(text: str) -> Path:
    """A model's folder, as argparse's `type`."""
    folder = Path(text)
    if not (folder / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{folder} holds no config.json: give a Hugging Face model folder")
    return folder


def writable(text: str) -> Path:
    """A file to be written in a folder that is there, as argparse's `type`."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} can't be written: give a file in a folder that exists")
    return path


def taste(text: str) -> str:
    """The name of a hidden utility, as argparse's `type`."""
    from feedback.simulator.utilities import UTILITIES

    if text not in UTILITIES:
        raise argparse.ArgumentTypeError(f"no hidden utility {text}; there are {', '.join(UTILITIES)}")
    return text


def settings(items: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` of the trainer's settings (`train.ppo.lam=0.9`; the value is JSON) as sections.

    Raises:
        SystemExit: with one line, where there is no such setting or it can't have this value.
    """
    from pydantic import ValidationError

    from train.config import TrainConfig

    found: dict[str, Any] = {}
    for item in items:
        key, _, value = item.partition("=")
        section, _, name = key.removeprefix("train.").partition(".")
        try:
            found.setdefault(section, {})[name] = json.loads(value)
            TrainConfig.model_validate(found)
        except ValidationError as error:
            raise SystemExit(
                f"--set {item}: {error.errors()[0]['msg']} (KEY is a setting such as train.ppo.lam)"
            ) from None
        except json.JSONDecodeError:
            raise SystemExit(f"--set {item}: give KEY=VALUE, the value in JSON: train.ppo.lam=0.9") from None
    return found


def same_base(cache: Path, fingerprint: str) -> None:
    """Keep the answers of one base apart from those of another: a cache is of the base that first wrote to it.

    Raises:
        SystemExit: with one line, where it is another's.
    """
    path = cache / "base.txt"
    if not path.exists():
        write_text(path, fingerprint + "\n")
    elif path.read_text().strip() != fingerprint:
        raise SystemExit(f"{cache} holds answers of another model: give another --cache, or remove this one")
