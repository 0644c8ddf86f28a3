"""How processes come to train together: started by the lead (`train.processes`), or by `torchrun`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from feedback.paths import DataPaths
from train.base import Base
from train.config import TrainConfig
from train.data import VotesSource
from train.errors import ConfigConflict, ModelUnusable
from train.team import ALONE, Team
from train.texts import TextReader
from train.tools import Tools

PATIENCE = timedelta(days=7)
"""How long a process waits for another's word: the lead may fit a reward model, or wait for votes."""


@contextmanager
def team(config: TrainConfig, paths: DataPaths, model: str, joined: Team | None) -> Iterator[Team]:
    """The team of a cycle: the one that torchrun made, or followers of this process's own, or itself alone."""
    if joined is not None:
        yield joined
        joined.tell({"do": "end"})
    elif config.processes == 1:
        yield ALONE
    else:
        with _with_followers(config, paths, model) as own:
            yield own


@contextmanager
def joined_by_torchrun(config: TrainConfig) -> Iterator[Team]:
    """The team that torchrun's environment describes."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    with _joined(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local, config, init_method="env://") as team:
        yield team


@contextmanager
def joined_by_file(store: Path, rank: int, size: int, config: TrainConfig) -> Iterator[Team]:
    """A team on this machine that meets over a file; it talks over the loopback interface alone."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    with _joined(rank, size, rank, config, init_method=f"file://{store}") as team:
        yield team


@contextmanager
def _with_followers(config: TrainConfig, paths: DataPaths, model: str) -> Iterator[Team]:
    """The lead's team of `train.processes`: followers that it starts, and that end with it.

    A follower that dies ends its connections, which the lead notices in its next exchange.
    """
    with tempfile.TemporaryDirectory(prefix="hustings-team-") as folder, ExitStack() as stack:
        store = Path(folder) / "store"
        job: dict[str, Any] = {"config": config.model_dump(mode="json"), "root": str(paths.root), "model": model}
        job |= {"store": str(store), "size": config.processes}
        for rank in range(1, config.processes):
            stack.enter_context(_follower({**job, "rank": rank}))
        with joined_by_file(store, 0, config.processes, config) as team:
            yield team
            team.tell({"do": "quit"})


def make_tools(
    config: TrainConfig,
    paths: DataPaths,
    model: Path,
    team: Team,
    *,
    votes: Callable[[TextReader], VotesSource],
    status: Any,
    should_stop: Callable[[], bool],
    rollouts: Any = None,
    incumbent: Callable[[], Path | None] = lambda: None,
) -> Tools:
    """What this process works with in a cycle: the base on its device, the tokenizer, the votes."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{model}: its tokenizer can't be read: {str(error).splitlines()[0]}") from error
    sharded = team.size > 1 and config.tuning == "full"
    base = Base.load(model, config.lora, device=str(device_for(config, team)), tuning=config.tuning, sharded=sharded)
    base.gradient_checkpointing = config.ppo.gradient_checkpointing  # in PPO, and in all that is trained before it
    if not tokenizer.chat_template:
        raise ModelUnusable(f"{model}: its tokenizer has no chat template; give a model that is made for chat")
    texts = TextReader.of(tokenizer, config.chat_template_kwargs or {}, base.eos_ids)
    return Tools(
        paths=paths,
        model=model,
        base=base,
        tokenizer=tokenizer,
        texts=texts,
        votes=votes(texts),
        status=status,
        rollouts=rollouts,
        incumbent=incumbent,
        should_stop=should_stop,
        team=replace(team, sharded=sharded),
    )


def device_for(config: TrainConfig, team: Team) -> torch.device:
    """Where this process computes."""
    if team.size > 1:
        return team.device
    wanted = config.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def set_threads(config: TrainConfig, processes: int) -> None:
    """Share the cores out among the machine's processes."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    torch.set_num_threads(max(1, (config.threads or len(os.sched_getaffinity(0))) // here))


@contextmanager
def _joined(rank: int, size: int, local: int, config: TrainConfig, init_method: str) -> Iterator[Team]:
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if cuda and local >= torch.cuda.device_count():
        raise ConfigConflict(
            f"train.processes asks for process {local + 1} on this machine, which has {torch.cuda.device_count()} GPUs:"
            ' lower train.processes, or set train.device = "cpu"'
        )
    if cuda:
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    torch.distributed.init_process_group(backend, init_method=init_method, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Team(rank, size, torch.device("cuda", local) if cuda else torch.device("cpu"))
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _follower(job: dict[str, Any]) -> Iterator[None]:
    """A process that follows; gone when this context is left."""
    process = subprocess.Popen([sys.executable, "-m", "train.follow"], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        yield
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
