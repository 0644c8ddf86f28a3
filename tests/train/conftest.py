"""A trained-on base for the trainer's tests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from train.base import POLICY, Base
from train.config import LoraSettings

# A wall clock tells nothing of a property on a shared machine; pytest's own timeout still holds.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@dataclass(frozen=True)
class Turn:
    """A prompt with an answer."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@pytest.fixture
def base(tiny_model: Path) -> Base:
    """The tiny model with a fresh policy adapter."""
    loaded = Base.load(tiny_model, LoraSettings(rank=4, alpha=8.0))
    loaded.adapters.add(POLICY, seed=0)
    return loaded


@pytest.fixture
def stirred(base: Base) -> Base:
    """The same with a policy that differs from the base."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in base.adapters.parameters(POLICY):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return base


@pytest.fixture
def turns() -> list[Turn]:
    """Prompts with a common beginning, some of them asked twice, and answers of uneven length."""
    head = (1, 20, 30, 40)
    return [
        Turn((*head, 50, 60), (70, 80, 90, 2)),
        Turn((*head, 51), (71,)),
        Turn((*head, 50, 60), (72, 82)),
        Turn((*head, 52, 62, 63, 64), (73, 83, 93)),
        Turn(head, (74, 84, 94, 104, 114)),
    ]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that are put on the disk, in order."""
    names: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: names.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    return names
