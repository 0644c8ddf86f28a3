"""The processes that are measured, each started as its users start it, and stopped at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.serving import litellm_proxy as proxy
from benchmarks.serving.instant import MODEL as INSTANT_MODEL
from benchmarks.waiting import wait_until
from deploy.config import HustingsConfig, to_toml
from deploy.launch import common_environment
from feedback.broker import EmbeddedBroker, free_port
from feedback.config import FeedbackConfig
from serve.config import ServeConfig
from serve.engines import vllm_settings

READY_S = 300.0
STOP_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its root and its process."""

    url: str
    process: subprocess.Popen[bytes]

    def computed(self) -> float:
        """Seconds that the process itself has computed; children (an engine's core) count for themselves."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


class StartFailed(Exception):
    """A server ended or didn't answer in time; the message ends with what it said last."""


@contextmanager
def running(
    name: str, command: Sequence[str], environment: Mapping[str, str], ready: str, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from the moment at which `ready` answers 200.

    Raises:
        StartFailed: it ended before, or the time is over.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
        try:
            _await(process, ready, log)
            yield process
        finally:
            _stop(process)


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    def answered() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
        return False

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: process.poll() is not None or answered(), READY_S, 0.2)
        if process.poll() is None:
            return
    tail = log.read_text(errors="replace")[-2000:]
    raise StartFailed(f"{url} didn't answer (exit status {process.poll()}):\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def instant(folder: Path) -> Iterator[str]:
    """The instant backend; yields its root."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "benchmarks.serving.instant", url.rpartition(":")[2]]
    with running("instant", command, os.environ, f"{url}/health", folder):
        yield url


@contextmanager
def raw_vllm(model: Path, config: ServeConfig, folder: Path) -> Iterator[Server]:
    """`vllm serve` with the engine arguments of our own engine, in its best setting: no statistics, no access log."""
    cpu = not vllm_settings.has_gpu()
    port = free_port()
    command = [*vllm_settings.server_command(config, str(model), port, cpu=cpu), "--disable-log-stats"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": vllm_settings.preload("")}
    environment |= vllm_settings.server_environment(config, str(model), os.environ, cpu=cpu)
    url = f"http://127.0.0.1:{port}"
    with running("vllm", command, environment, f"{url}/health", folder) as process:
        yield Server(url, process)


@dataclass(frozen=True, slots=True)
class Hustings(Server):
    """A running `hustings serve`.

    Attributes:
        kafka: the embedded broker's address.
    """

    config: HustingsConfig
    kafka: str


@contextmanager
def hustings(
    serve: ServeConfig,
    folder: Path,
    *,
    model: Path | None = None,
    command: Sequence[str] = ("-m", "deploy", "serve"),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Hustings]:
    """`hustings serve` as `hustings up` starts it, its embedded broker beside it.

    Args:
        command: what Python is given before `--config FILE`.
        environment: more of it.
    """
    broker = EmbeddedBroker()
    broker.start()
    try:
        kafka = broker.address
        config = HustingsConfig(
            data_dir=folder / "data",
            model=str(model) if model else INSTANT_MODEL,
            serve=serve.model_copy(update={"port": free_port()}),
            feedback=FeedbackConfig(kafka=kafka),
        )
        file = folder / "hustings.toml"
        file.write_text(to_toml(config))
        url = f"http://127.0.0.1:{config.serve.port}"
        variables = {**os.environ, **common_environment(config, coloured=False)}
        variables["LD_PRELOAD"] = vllm_settings.preload("")  # as the raw server's
        whole = [sys.executable, *command, "--config", str(file)]
        with running("hustings", whole, variables | dict(environment or {}), f"{url}/readyz", folder) as process:
            yield Hustings(url, process, config, kafka)
    finally:
        broker.stop()


@contextmanager
def litellm_proxy(backend: str, folder: Path) -> Iterator[Server]:
    """LiteLLM's proxy in front of the backend, one process."""
    command = proxy.make(proxy.default_folder())
    file = folder / "litellm.yaml"
    file.write_text(proxy.configuration(backend, INSTANT_MODEL))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    whole = [str(command), "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with running("litellm", whole, proxy.environment(), f"{url}/health/liveliness", folder) as process:
        yield Server(url, process)
