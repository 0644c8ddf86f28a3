"""What a cycle tells of itself while PPO is under way."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

import pytest

from train.chronicle import Chronicle
from train.config import TrainConfig
from train.finals import Final
from train.governor import Judgement
from train.iteration import IterationMetrics
from train.status import StatusBoard


class Board:
    """Keeps the shares of PPO that are told."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def phase(self, _name: str, share: float = 0.0, **_more: Any) -> None:
        self.shares.append(share)


def chronicle(folder: Path, config: TrainConfig) -> tuple[Chronicle, Board]:
    board = Board()
    made = Chronicle(folder, cast("StatusBoard", board), tokenizer=None, config=config, number=1, boards=folder)
    return made, board


def metrics(iteration: int) -> IterationMetrics:
    named = dict.fromkeys(("score", "score_std", "kl", "objective", "length", "eos_share", "kl_coefficient"), 0.5)
    return IterationMetrics(
        iteration=iteration, episodes=8, distinct_within=1.0, distinct_across=1.0, perplexity=8.0, **named
    )


@pytest.mark.parametrize(
    "iterations", [3, 4, 5, 2]
)  # the whole, one more that is judged, one taken back, stopped early
@pytest.mark.parametrize("governor", [{}, {"final_answers": 0}, {"enabled": False}])
def test_what_is_done_of_ppo_only_grows(tmp_path: Path, iterations: int, governor: dict[str, Any]) -> None:
    config = TrainConfig.model_validate({"ppo": {"iterations": 3}, "governor": governor})
    told, board = chronicle(tmp_path, config)
    for at in range(iterations):
        for step in ("sample", "score", "old", "update"):
            told.progressed(step, 0, 8)
        told.progressed("update", 8, 8)
        told.iteration(metrics(at), Judgement(True))
    before_finals = len(board.shares)
    if config.governor.enabled and config.governor.final_answers:
        for done in range(3):  # one more finalist than two is asked where none of them may be published
            told.progressed("finals", 0, 8)
            told.progressed("finals", done, 2)
        assert board.shares[before_finals] < board.shares[before_finals + 3] == (5.5 / 6)
    assert all(0 <= share <= 1 for share in board.shares)
    assert all(first <= second for first, second in itertools.pairwise(board.shares))
    assert board.shares[0] == 0.0


def test_finals_are_kept_in_a_file_of_their_own(tmp_path: Path) -> None:
    told, _ = chronicle(tmp_path, TrainConfig())
    told.finals([Final(2, 1.5, 4.0, 1.25, 0.5, 0.25, ("KL",), 12.5)])
    assert json.loads((tmp_path / "finals.json").read_text()) == [
        {"iteration": 2, "score": 1.5, "kl": 4.0, "perplexity": 1.25, "topic": 0.5, "base_topic": 0.25}
        | {"breaches": ["KL"], "seconds": 12.5}
    ]
