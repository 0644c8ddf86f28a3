"""Fixtures that several parts' tests share."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.tiny_model import make_tiny_adapter, make_tiny_model

if TYPE_CHECKING:
    from serve.engines.vllm_inprocess import VllmEngine

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with tokenizer and chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three LoRA folders for `tiny_model`, each with weights of its own."""
    root = tmp_path_factory.mktemp("tiny-adapters")
    return tuple(make_tiny_adapter(tiny_model, root / f"lora-{seed}", seed=seed) for seed in (1, 2, 3))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(tiny_model: Path) -> AsyncIterator[VllmEngine]:
    """The real engine on the tiny model, one for the whole run: 8 slots, 4 adapters, 256 tokens of context.

    It lives on the session's event loop: its tests are `slow` and `@pytest.mark.asyncio(loop_scope="session")`.
    """
    from serve.config import ServeConfig
    from serve.engines.vllm_inprocess import VllmEngine

    config = ServeConfig(max_model_len=256, max_num_seqs=8, reserved_seqs=2, max_loras=4, kv_cache_gib=0.125)
    engine = VllmEngine(str(tiny_model), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' imports; what runs afterwards is held to "error"
        await engine.start()
    yield engine
    await engine.close()
