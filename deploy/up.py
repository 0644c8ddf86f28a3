"""`hustings up`: everything on one machine, under one supervisor."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from deploy import launch, ports, presence
from deploy.beside import RESOLVED
from deploy.config import HustingsConfig, to_toml
from deploy.console import Console
from deploy.default_model import resolve
from deploy.errors import ConfigError
from deploy.kafka import require_usable
from deploy.supervisor import Supervisor
from feedback.identity import SecretError, load_or_make_secret
from feedback.paths import DataPaths

_GATES = {
    "probes": "A new adapter takes office as soon as it has proved to be the one that was trained; with "
    "--set serve.releases.gate=votes people's votes decide.",
    "votes": "A new adapter takes office when people's votes have elected it (some hundred votes of many people).",
    "operator": "A new adapter takes office when you say so: `hustings releases promote`.",
}


def run(config: HustingsConfig) -> None:
    """Start everything and keep it running until Ctrl-C.

    Raises:
        DeployError: the data folder, a port or the model can't be used, or a process would not stay up.
    """
    console = Console()
    with presence.hold(config.paths):
        started = time.monotonic()
        make_secrets(config)
        require_usable(config)
        _require_ports(config)
        config, broker_port = _resolve(config, resolve(config))
        console.say(f"data folder {config.data_dir}, model {config.model}")
        config_file = config.paths.run / RESOLVED
        _write_privately(config_file, to_toml(config))
        kafka = str(config.feedback.kafka)
        url = launch.serve_url(config)

        def note(processes: dict[str, int]) -> None:
            tell(config.paths, presence.Presence(os.getpid(), url, kafka, processes), console)

        supervisor = Supervisor(
            launch.specs(config, config_file, broker_port=broker_port, say=console.say, coloured=console.coloured),
            config.paths.logs,
            console,
            on_ready=lambda: console.say(_welcome(config, url, time.monotonic() - started)),
            on_started=note,
        )
        asyncio.run(supervisor.run())
        console.say("all stopped")


def _write_privately(file: Path, text: str) -> None:
    """Write what may hold a database's password."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        handle.write(text)


def tell(paths: DataPaths, now: presence.Presence, console: Console) -> None:
    """Tell the other commands how it stands. A full disk must not end the processes that get by without one."""
    try:
        presence.write(paths, now)
    except OSError as error:
        console.say(f"{paths.run} can't be written ({error.strerror}): other commands are told what was there before")


def make_secrets(config: HustingsConfig) -> tuple[str, str]:
    """The voters' key and the operator token, made on first use."""
    folder = config.paths.secrets
    try:
        return (
            load_or_make_secret(folder / "voter_key", "HUSTINGS_SECRET"),
            load_or_make_secret(folder / "operator_token", "HUSTINGS_OPERATOR_TOKEN"),
        )
    except SecretError as error:
        raise ConfigError(str(error)) from error


def _require_ports(config: HustingsConfig) -> None:
    """Everything that will be listened on is free: better said now than a minute into the start."""
    for key, (host, port) in ports.listened_on(config).items():
        other = f"--port {port + 1}" if key == "serve.port" else f"--set {key}={port + 100}"
        ports.require_free(host, port, f"stop that, or choose another: {other}")


def _resolve(config: HustingsConfig, model: str) -> tuple[HustingsConfig, int | None]:
    """The configuration with every choice made, and the embedded broker's port if there is to be one."""
    serve, feedback, broker_port = config.serve, config.feedback, None
    if not serve.port:
        serve = serve.model_copy(update={"port": ports.free_port(serve.host)})
    if feedback.kafka is None:
        broker_port = feedback.broker_port or ports.free_port()
        feedback = feedback.model_copy(update={"kafka": f"127.0.0.1:{broker_port}", "broker_port": broker_port})
    return config.model_copy(update={"model": model, "serve": serve, "feedback": feedback}), broker_port


def _welcome(config: HustingsConfig, url: str, seconds: float) -> str:
    token: Path | str = config.paths.secrets / "operator_token"
    return (
        f"ready after {seconds:.0f} s\n"
        f"\n"
        f"  Chat and vote    {url}/\n"
        f"  Watch the loop   {url}/loop\n"
        f"  OpenAI clients   {url}/v1   (model: hustings)\n"
        f"  Metrics          {url}/metrics\n"
        f"  Operator token   {token}\n"
        f"  Logs             {config.paths.logs}\n"
        f"\n"
        f"A training cycle starts by itself at {config.train.schedule.new_comparisons} new votes that name a winner. "
        f"No people at hand? `hustings simulate`.\n"
        f"{_GATES[config.serve.releases.gate]}\n"
        f"Ctrl-C stops everything."
    )
