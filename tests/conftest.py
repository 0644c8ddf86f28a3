"""Fixtures that several parts' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_adapter, make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with tokenizer and chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three LoRA folders for `tiny_model`, each with weights of its own."""
    root = tmp_path_factory.mktemp("tiny-adapters")
    return tuple(make_tiny_adapter(tiny_model, root / f"lora-{seed}", seed=seed) for seed in (1, 2, 3))
