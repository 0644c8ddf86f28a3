"""The trainer under trial: `hustings train` on a model of two layers, whose cycles take seconds; and what it leaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.durability.parts import python
from benchmarks.durability.training_verdict import CycleSeen, Published
from feedback.contracts import AdapterManifest
from feedback.paths import DataPaths
from train.config import GovernorConfig, LoraSettings, PpoConfig, RolloutConfig, TrainConfig
from train.cycle_state import all_cycles
from train.reward.config import RewardConfig, ScheduleConfig

SETTINGS = TrainConfig(
    threads=1,
    reward=RewardConfig(depths=(0.0,), folds=3, members=0),
    lora=LoraSettings(rank=4, alpha=8.0),
    ppo=PpoConfig(iterations=2, episodes=32, learning_rate=1e-2, kl_coefficient=0.0),
    governor=GovernorConfig(enabled=False),  # answers of a model of noise have no fluency to lose
    rollout=RolloutConfig(max_tokens=8, max_prompt_tokens=160),
    schedule=ScheduleConfig(
        new_comparisons=24,
        poll_s=0.2,
        eval_prompts=16,
        keep_snapshots=1_000_000,  # the verdict reads each
        metrics_port=0,
        niceness=0,
    ),
)
"""Cycles that follow one another: a kill is to find the trainer at work."""
LONGEST_PROMPT = 4096
AT_REST = {"idle", "failed"}
CYCLE_S = 240.0


class NotTrained(Exception):
    """The trainer did not end its cycle."""


def make_model(folder: Path) -> Path:
    """The model to train: random, and long enough for the conversations of bytes that the instant engine leads."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(folder, max_positions=LONGEST_PROMPT)


def at_work(paths: DataPaths) -> bool:
    """Whether the trainer's own status says that it is in a cycle."""
    try:
        return json.loads((paths.train / "status.json").read_text())["phase"] not in AT_REST
    except FileNotFoundError:
        return False


def in_a_cycle(paths: DataPaths) -> bool:
    """Whether a cycle is open: begun, and not ended."""
    return any(state.outcome is None for state in all_cycles(paths))


def finish(config: Path, paths: DataPaths, log: Path, environment: Mapping[str, str]) -> None:
    """Let a trainer end the cycle that was cut off, if one was, and run another on all there is.

    Raises:
        NotTrained: it ended neither with an adapter nor by refusing one.
    """
    for _ in range(2 if in_a_cycle(paths) else 1):
        with log.open("ab") as output:
            try:
                done = subprocess.run(
                    python("-m", "deploy", "train", "--once", "--config", str(config)),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                    timeout=CYCLE_S,
                )
            except subprocess.TimeoutExpired as error:
                raise NotTrained(f"hustings train --once did not end within {CYCLE_S:.0f} s: {log}") from error
        if done.returncode not in {0, 1}:
            raise NotTrained(f"hustings train --once ended with {done.returncode}: {log}")


def cycles(paths: DataPaths) -> list[CycleSeen]:
    """Every cycle, oldest first."""
    return [
        CycleSeen(state.number, state.outcome, state.reason, state.snapshot, state.adapter)
        for state in all_cycles(paths)
    ]


def adapters(folder: Path) -> list[Published]:
    """Everything in the store that serving could see, whole or not, by name."""
    return [_look(path) for path in sorted(folder.glob("policy-*"))]


def _look(folder: Path) -> Published:
    try:
        content = (folder / "manifest.json").read_bytes()
        manifest = AdapterManifest.model_validate_json(content)
        trouble = _trouble(folder, manifest)
    except (OSError, ValueError) as error:
        return Published(folder.name, None, None, f"no manifest: {type(error).__name__}")
    return Published(folder.name, manifest.snapshot, hashlib.sha256(content).hexdigest(), trouble)


def _trouble(folder: Path, manifest: AdapterManifest) -> str | None:
    if manifest.name != folder.name:
        return f"its manifest is of {manifest.name}"
    if not {"adapter_config.json", "adapter_model.safetensors"} <= manifest.files.keys():
        return "its manifest names no weights"
    for name, digest in manifest.files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return f"{name} is not what the manifest says"
    return None
