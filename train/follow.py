"""A process that trains under a lead: it does what it hears, on its own part of the rows, and writes nothing.

Words of the lead: `begin` (load the base), `features`, `learn` (warm start and PPO of a cycle), `end` (let the base
go), `quit`. Snapshot, reward model and checkpoints are read from the data folder, which all processes must see.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from feedback.paths import DataPaths
from train.config import TrainConfig
from train.errors import TrainError

log = structlog.get_logger()


def main() -> int:
    """Run beside a lead on the same machine, which gives the job as a line of JSON and keeps the pipe open."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_lead, daemon=True).start()
    from feedback.priority import step_back
    from train.launch import joined_by_file

    config = TrainConfig.model_validate(job["config"])
    step_back(config.schedule.niceness)
    with joined_by_file(Path(job["store"]), job["rank"], job["size"], config) as team:
        return follow(team, DataPaths(Path(job["root"])), job["model"])


def follow(team: Any, paths: DataPaths, model: str) -> int:
    """Do what the lead says until it says `quit`."""
    from train.launch import set_threads

    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the lead decides
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    tools: Any = None

    def begin(config: TrainConfig) -> Any:
        set_threads(config, team.size)
        return _tools(team, config, paths, model, stop)

    while (word := team.hear())["do"] != "quit":
        try:
            if word["do"] == "begin":
                tools = team.agree(partial(begin, TrainConfig.model_validate(word["config"])))
            elif word["do"] == "features":
                _read_features(tools, word)
            elif word["do"] == "learn":
                _learn(tools, word)
        except TrainError as error:
            # Known to all processes; the lead says it to people, and what comes next.
            log.info("part_of_cycle_ended", rank=team.rank, reason=str(error))
        if word["do"] == "end":
            tools = None
            gc.collect()
    return 0


def _tools(team: Any, config: TrainConfig, paths: DataPaths, model: str, stop: threading.Event) -> Any:
    from feedback.fingerprint import model_folder
    from train.data import DatasetVotes
    from train.launch import make_tools
    from train.texts import TextReader

    def votes(texts: TextReader) -> DatasetVotes:
        return DatasetVotes(paths.dataset, None, texts)

    folder = model_folder(model)
    return make_tools(config, paths, folder, team, votes=votes, status=_Silent(), should_stop=stop.is_set)


def _read_features(tools: Any, word: dict[str, Any]) -> None:
    import torch

    from train.reward.extract import FeatureReader
    from train.reward.features import Vocabulary
    from train.reward.votes import Answer

    tables = {
        name: tools.team.hand_out(torch.zeros(shape, dtype=getattr(torch, kind)))
        for name, (shape, kind) in word["tables"].items()
    }
    reader = FeatureReader(
        tools.base, tuple(word["layers"]), Vocabulary(**tables), tools.paths.train, word["budget"], tools.team
    )
    reader.compute_share([Answer(tuple(prompt), tuple(response)) for prompt, response in word["answers"]])


def _learn(tools: Any, word: dict[str, Any]) -> None:
    from train.cycle import load_head
    from train.cycle_state import cycles_folder, load_state
    from train.learning import Learning

    folder = cycles_folder(tools.paths) / f"{word['cycle']:06d}"
    config = TrainConfig.model_validate(word["config"])

    def read() -> Any:
        snapshot = load_state(folder).snapshot
        assert snapshot is not None
        return load_head(folder / "reward", tools.base, config), tools.votes.load(snapshot)

    head, data = tools.team.agree(read)
    incumbent = Path(word["incumbent"]) if word["incumbent"] else None
    Learning(tools, config, folder, word["cycle"]).learn(head, data, begins=word["begins"], incumbent=incumbent)
    tools.base.adapters.settle()


def _end_with_the_lead() -> None:
    """The pipe ends when the lead does, however it died; nobody would hear this process then."""
    sys.stdin.read()
    os._exit(1)


class _Silent:
    """A status board that nobody looks at."""

    status: dict[str, Any] = {}  # noqa: RUF012 - never written

    def phase(self, *_args: Any, **_more: Any) -> None:
        """Nothing."""

    def update(self, *_args: Any, **_more: Any) -> None:
        """Nothing."""


if __name__ == "__main__":
    raise SystemExit(main())
