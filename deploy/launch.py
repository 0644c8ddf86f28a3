"""What `hustings up` starts: the processes, their environment, and how to tell that each is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

import deploy
from deploy.child import ChildSpec
from deploy.config import ENVIRONMENT, HustingsConfig
from feedback.priority import short_waits

READY_POLL_S = 0.25
PATIENCE_S = 10.0
"""Seconds between signs of life while the model loads."""


def specs(
    config: HustingsConfig, config_file: Path, *, broker_port: int | None, say: Callable[[str], None], coloured: bool
) -> list[ChildSpec]:
    """The children in the order of their start.

    Args:
        config: resolved: model, ports and Kafka address are set.
        config_file: the same, as a file for the children.
        broker_port: of the embedded broker; None when an outside Kafka is used.
        say: told how the start goes.
    """
    common = common_environment(config, coloured=coloured)
    url = serve_url(config)
    children = []
    if broker_port is not None:
        children.append(
            ChildSpec("broker", _broker_command(broker_port), ready=lambda: _listening(broker_port), stop_grace_s=5)
        )
    first = tuple(child.name for child in children)
    children += [
        ChildSpec(
            "serve",
            _verb("serve", config_file),
            {**common, **preload(openmp=True)},
            ready=lambda: _http_ready(f"{url}/readyz", say),
            after_ready=first,
            stop_grace_s=config.serve.shutdown_grace_s + 20,
        ),
        ChildSpec(
            "curate",
            # One thread: its work is small and must not take a core from the engine.
            _verb("curate", config_file),
            {**common, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"},
            essential=False,
            after_ready=first,
        ),
        ChildSpec(
            "train",
            _verb("train", config_file, "--serve-url", url),
            {**common, **preload(openmp=False)},
            essential=False,
            # The engine's start takes both cores already; there is nothing to train on before it serves.
            after_ready=("serve",),
            stop_grace_s=30,
            oom_score=500,
        ),
    ]
    return children


def serve_url(config: HustingsConfig) -> str:
    """Where a process on this machine reaches serving."""
    host = config.serve.host
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 (compared, not bound)
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{config.serve.port}"


def common_environment(config: HustingsConfig, *, coloured: bool) -> dict[str, str]:
    """What every Python child gets; what the caller's environment says already stays."""
    wanted = {
        "HUSTINGS_LOG_FORMAT": "console",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Nothing about this installation leaves it.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Its warnings tell of build options that nobody here can change.
        "VLLM_LOGGING_LEVEL": "INFO" if config.serve.log_level == "debug" else "ERROR",
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
        "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(1 << 40),
    }
    if config.model is not None and Path(config.model).is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    if coloured:
        wanted["FORCE_COLOR"] = "1"
    environment = {name: value for name, value in wanted.items() if name not in os.environ} | short_waits(os.environ)
    source = str(Path(deploy.__file__).resolve().parents[1])
    # What these say is in the children's file already, unless the command line said otherwise: they would overrule it.
    environment |= {name: "" for name in ENVIRONMENT if os.environ.get(name)}
    environment["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment


def preload(*, openmp: bool) -> dict[str, str]:
    """LD_PRELOAD of the libraries that are there: tcmalloc, and for the engine Intel's OpenMP, as vLLM advises."""
    if not sys.platform.startswith("linux") or "LD_PRELOAD" in os.environ:
        return {}
    found = [library for library in (find_tcmalloc(), find_iomp() if openmp else None) if library is not None]
    return {"LD_PRELOAD": ":".join(map(str, found))} if found else {}


def find_tcmalloc() -> Path | None:
    """Debian's libtcmalloc-minimal4, wherever this machine keeps it."""
    folders = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    candidates = (Path(folder) / "libtcmalloc_minimal.so.4" for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def find_iomp() -> Path | None:
    """The environment's own libiomp5, from the intel-openmp wheel."""
    path = Path(sys.prefix) / "lib" / "libiomp5.so"
    return path if path.is_file() else None


def _verb(verb: str, config_file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "deploy", verb, "--config", str(config_file), *arguments]


def _broker_command(port: int) -> list[str]:
    from feedback.broker import broker_command

    return broker_command(port)


async def _listening(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(0.05)


async def _http_ready(url: str, say: Callable[[str], None]) -> None:
    """Return when `url` answers 200; say now and then that it is still awaited."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    told = started
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        while not await _answers(client.get(url)):
            await asyncio.sleep(READY_POLL_S)
            if loop.time() - told >= PATIENCE_S:
                told = loop.time()
                say(f"the engine is loading the model ({told - started:.0f} s; 40 to 60 s are usual on two cores)")


async def _answers(request: Awaitable[httpx.Response]) -> bool:
    try:
        return (await request).status_code == 200
    except httpx.HTTPError:
        return False
