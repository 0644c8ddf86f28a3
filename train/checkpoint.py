"""Checkpoints of a PPO run: safetensors and JSON, written whole or not at all.

All that is random is a function of (seed, iteration): the RNG's state is the seed, the data position the iteration.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.files import sync
from train.sharding import like, whole

TENSORS_FILE = "state.safetensors"
RECORD_FILE = "state.json"


def folder_of(root: Path, iteration: int) -> Path:
    """Where the state before `iteration` lies."""
    return root / f"iteration-{iteration:04d}"


def save(root: Path, iteration: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write a checkpoint atomically: under another name, fsynced, then renamed. An existing one is replaced."""
    final = folder_of(root, iteration)
    passing = root / f".{final.name}.{os.getpid()}"
    shutil.rmtree(passing, ignore_errors=True)
    passing.mkdir(parents=True)
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, passing / TENSORS_FILE)
        (passing / RECORD_FILE).write_text(json.dumps(record, indent=1, sort_keys=True))
        for file in (passing / TENSORS_FILE, passing / RECORD_FILE, passing):
            sync(file)
        if final.exists():
            shutil.rmtree(final)
        passing.rename(final)
    except Exception:  # a full disk: give back what the attempt took
        shutil.rmtree(passing, ignore_errors=True)
        raise
    sync(root)
    return final


def latest(root: Path) -> int | None:
    """The newest whole checkpoint's iteration; leftovers of a killed write are removed."""
    for leftover in root.glob(".iteration-*"):
        shutil.rmtree(leftover)
    whole = [folder for folder in root.glob("iteration-*") if (folder / RECORD_FILE).exists()]
    return max((int(folder.name.rpartition("-")[2]) for folder in whole), default=None)


def load(root: Path, iteration: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a checkpoint."""
    folder = folder_of(root, iteration)
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text())
    return load_file(folder / TENSORS_FILE), record


def slim(root: Path, iteration: int, keep: str) -> None:
    """Drop all tensors of an old checkpoint but those whose name begins with `keep`."""
    folder = folder_of(root, iteration)
    if not folder.exists():
        return
    tensors = {key: tensor for key, tensor in load_file(folder / TENSORS_FILE).items() if key.startswith(keep)}
    try:
        save_file(tensors, folder / ".slim")
        sync(folder / ".slim")
    except Exception:  # as above: a full disk
        (folder / ".slim").unlink(missing_ok=True)
        raise
    (folder / ".slim").replace(folder / TENSORS_FILE)


def below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors called `name/...`, without that beginning."""
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def difference(recorded: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """The first place, dotted, where a record's identity is not today's; None where they are one.

    What a record of an earlier version lacks counts as its default, which the cycle went on with.
    """
    for key in sorted({*recorded, *now}):
        was, is_, default = recorded.get(key, defaults.get(key)), now.get(key), defaults.get(key)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            within = difference(was, is_, default if isinstance(default, Mapping) else {})
            if within is not None:
                return f"{key}.{within}"
        elif key not in now or was != is_:
            return key
    return None


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An AdamW's moments and steps, by the parameter's place."""
    return {
        f"{prefix}.{index}.{key}": whole(value)
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Put back what `optimiser_tensors` gave."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            _, index, key = name.rsplit(".", 2)
            fits = tensor.shape == weights[int(index)].shape and key != "step"
            state.setdefault(int(index), {})[key] = like(tensor, weights[int(index)]) if fits else tensor.clone()
    content = optimiser.state_dict()
    content["state"] = state
    optimiser.load_state_dict(content)


def adamw(weights: Iterable[nn.Parameter], rate: float, betas: tuple[float, float], decay: float) -> torch.optim.AdamW:
    """The optimiser, in its fused form (one pass over memory)."""
    return torch.optim.AdamW(list(weights), lr=rate, betas=betas, weight_decay=decay, fused=True)
