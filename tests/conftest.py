"""Fixtures that several parts' tests share."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import pytest_asyncio
import structlog

from feedback.priority import short_waits
from tests.tiny_model import make_tiny_adapter, make_tiny_model

if TYPE_CHECKING:
    from feedback.broker import EmbeddedBroker
    from serve.engines.vllm_http import VllmHttpEngine
    from serve.engines.vllm_inprocess import VllmEngine

os.environ.update(short_waits(os.environ))


@pytest.fixture(scope="session", autouse=True)
def loggers_follow_their_test() -> Iterator[None]:
    """A logger that is kept from its first use would go on writing to the output of the test that used it first."""
    configure = structlog.configure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            structlog, "configure", lambda **settings: configure(**settings | {"cache_logger_on_first_use": False})
        )
        yield


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A test that runs a command sets up logging to its own stderr, which is closed when the test has ended."""
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    yield
    for handler in [one for one in root.handlers if one not in before and type(one) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with tokenizer and chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three LoRA folders for `tiny_model`, each with weights of its own."""
    root = tmp_path_factory.mktemp("tiny-adapters")
    return tuple(make_tiny_adapter(tiny_model, root / f"lora-{seed}", seed=seed) for seed in (1, 2, 3))


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    """An embedded broker of the test's own, to kill. Such tests ignore PytestUnraisableExceptionWarning: the client
    leaves the sockets of failed connections to the garbage collector, which complains."""
    from feedback.broker import EmbeddedBroker

    made = EmbeddedBroker()
    made.start()
    yield made
    made.stop()
    gc.collect()


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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """URL of a real vLLM OpenAI server on the tiny model, with the settings of `vllm_engine`."""
    from serve.config import ServeConfig
    from serve.engines import vllm_settings

    config = ServeConfig(max_model_len=256, max_num_seqs=8, reserved_seqs=2, max_loras=4, kv_cache_gib=0.125)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    cpu = not vllm_settings.has_gpu()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment |= vllm_settings.server_environment(config, str(tiny_model), environment, cpu=cpu)
    if cpu and (libraries := vllm_settings.preload(environment.get("LD_PRELOAD", ""))):
        environment["LD_PRELOAD"] = libraries
    output = tmp_path_factory.mktemp("vllm-server") / "output.txt"
    command = vllm_settings.server_command(config, str(tiny_model), port, cpu=cpu)
    with output.open("wb") as log:
        server = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient() as client:
        while not await _answers(client, url):
            assert server.returncode is None, output.read_text()[-4000:]
            await asyncio.sleep(0.5)
    yield url
    server.terminate()
    await server.wait()


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/health")).status_code == 200
    except httpx.TransportError:
        return False


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_http_engine(vllm_server: str) -> AsyncIterator[VllmHttpEngine]:
    """The engine over HTTP, against that server."""
    from serve.config import ServeConfig
    from serve.engines.vllm_http import VllmHttpEngine

    config = ServeConfig(max_num_seqs=8, reserved_seqs=2, max_loras=4, engine_start_timeout_s=150.0)
    engine = VllmHttpEngine([vllm_server], config)
    await engine.start()
    yield engine
    await engine.close()
