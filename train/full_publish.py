"""Publishing a whole model: a Hugging Face folder that appears at once, with a manifest to verify it by.

Serving swaps adapters, not bases: an operator starts it anew with the folder (`hustings up --model FOLDER`). Imports no
torch, so that `hustings checkpoints` answers at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feedback.contracts import CheckpointManifest, ProbeRecord
from feedback.fingerprint import base_fingerprint
from train.errors import CheckpointUnusable
from train.files import appear, sha256, write_text
from train.publish import MANIFEST

COPIED = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Suffixes of a model folder's files that belong to the tokenizer, the template and the settings."""
PREFIX = "full-"


def next_checkpoint(folder: Path, reserved: Iterable[str] = ()) -> str:
    """`full-NNNNNN` one above every checkpoint that is there and every name that a cycle has reserved."""
    names = {path.name for path in folder.glob(f"{PREFIX}*")} | set(reserved)
    numbers = [int(number) for name in names if (number := name.removeprefix(PREFIX)).isdigit() and number != name]
    return f"{PREFIX}{max(numbers, default=0) + 1:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"{PREFIX}*/{MANIFEST}"))


def publish_checkpoint(
    folder: Path,
    name: str,
    save: Callable[[Path], None],
    *,
    base: Path,
    base_fingerprint_: str,
    dtype: str,
    reward_model: str,
    snapshot: str,
    probes: Sequence[ProbeRecord],
    config: dict[str, Any],
    metrics: dict[str, float],
) -> Path:
    """Write weights, tokenizer, settings and manifest under a temporary name, sync, rename. One there is kept.

    Args:
        folder: `DataPaths.checkpoints`.
        name: reserved for this model alone.
        save: writes the weight files into a folder.
        base: the model's folder that training began with; its other files are taken over.
        base_fingerprint_, dtype, reward_model, snapshot, probes, config, metrics: the manifest's.
    """

    def fill(work: Path) -> None:
        for path in sorted(base.iterdir()):
            if path.is_file() and (path.suffix in COPIED or path.name.startswith("LICENSE")) and not _replaced(path):
                shutil.copyfile(path, work / path.name)
        save(work)
        manifest = CheckpointManifest(
            name=name,
            fingerprint=base_fingerprint(work),
            base_model=base.name,
            base_fingerprint=base_fingerprint_,
            dtype=dtype,
            reward_model=reward_model,
            snapshot=snapshot,
            files={path.name: sha256(path) for path in sorted(work.iterdir())},
            probes=tuple(probes),
            config=config,
            metrics=metrics,
        )
        write_text(work / MANIFEST, manifest.model_dump_json(indent=1) + "\n")

    return appear(folder / name, MANIFEST, fill)


def verify(folder: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest and compare every file with it.

    Raises:
        CheckpointUnusable: it is none, or a file is missing, changed or strange to it.
    """
    try:
        manifest = CheckpointManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointUnusable(f"{folder} holds no {MANIFEST}: it is no checkpoint that was published") from error
    except (OSError, ValidationError) as error:
        raise CheckpointUnusable(f"{folder / MANIFEST} is no checkpoint's manifest; publish it again") from error
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(there ^ manifest.files.keys()):
        state = "is not in the manifest" if name in there else "is missing"
        raise CheckpointUnusable(f"{folder / name} {state}: do not serve it; copy the checkpoint anew")
    for name, digest in manifest.files.items():
        if sha256(folder / name) != digest:
            raise CheckpointUnusable(f"{folder / name} was changed: do not serve it; copy the checkpoint anew")
    if base_fingerprint(folder) != manifest.fingerprint:
        raise CheckpointUnusable(f"{folder} has another fingerprint than its manifest says: do not serve it")
    return manifest


def stated_dtype(base: Path) -> str:
    """The type of a model folder's weights as its config.json states it; float32 where it is silent."""
    config = json.loads((base / "config.json").read_text())
    stated = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return stated if stated in {"float32", "bfloat16", "float16"} else "float32"


def _replaced(path: Path) -> bool:
    """Whether publishing writes this file itself."""
    return path.name == MANIFEST or path.name.endswith(".index.json")
