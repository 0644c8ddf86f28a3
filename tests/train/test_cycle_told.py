"""What a cycle tells of itself while it runs, and while it waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feedback.dataset import Dataset
from feedback.paths import DataPaths
from tests.train.test_cycle import CONFIG, fill, train_once
from tests.train.tiny_trainer import make_trainer
from train import cycle
from train.cycle_state import all_cycles
from train.errors import NotEnoughVotes
from train.evaluate import Evaluation, evaluate
from train.reward.votes import Votes

pytestmark = pytest.mark.slow


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    made = DataPaths(tmp_path / "data")
    made.create()
    return made


def test_a_cycles_progress_never_goes_back_and_its_last_entropy_is_an_updates(
    paths: DataPaths, tiny_model: Path
) -> None:
    fill(paths, tiny_model)
    seen: list[tuple[str, float]] = []
    trainer = make_trainer(
        paths, tiny_model, CONFIG, observe=lambda status: seen.append((status["phase"], status["progress"]))
    )
    assert trainer.run_once() == 0
    shares = [share for phase, share in seen if phase != "idle"]
    assert shares == sorted(shares)
    of_ppo = [share for phase, share in seen if phase == "ppo"]
    # four policies are judged, each for a quarter of the time between 0.15 and 0.9
    assert {0.15, 0.3375, 0.525, 0.7125, 0.9} <= set(of_ppo)
    # the last policy is judged without an update, whose entropy would be 0
    assert trainer._status.status["entropy"] > 1.0


def test_a_cycle_that_is_to_sample_from_serving_waits_until_it_knows_of_one(paths: DataPaths, tiny_model: Path) -> None:
    """It once sampled in the trainer instead, and said nothing."""
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model, {**CONFIG, "rollout": {"max_tokens": 8, "source": "serving"}}) == 1
    message = json.loads((paths.train / "status.json").read_text())["message"]
    assert "no serving is known: start it first (hustings up), give --serve-url URL, or set train.rollout" in message
    (state,) = all_cycles(paths)
    assert (state.outcome, state.snapshot) == (None, None)


def test_a_figure_that_is_no_number_is_left_out_of_the_manifest(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serving refuses a manifest with one."""

    def endless(*what: Any, **how: Any) -> Evaluation:
        found = evaluate(*what, **how)
        return replace(found, after=replace(found.after, perplexity=float("inf")))

    monkeypatch.setattr(cycle, "evaluate", endless)
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model, CONFIG) == 0
    (manifest,) = paths.adapters.glob("*/manifest.json")
    figures = json.loads(manifest.read_text())["metrics"]
    assert "policy_kl" in figures
    assert "policy_perplexity" not in figures


def test_a_last_head_is_told_which_votes_its_predecessor_has_not_seen(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model, CONFIG) == 0
    seen = {vote.vote_id for vote in Dataset(paths.dataset).votes()}
    fill(paths, tiny_model, 32, seed=1)
    told: dict[str, bool] = {}

    def refresh(_base: Any, votes: Votes, *_: Any, unseen_by_predecessor: Callable[[int], bool]) -> None:
        told.update((vote_id, unseen_by_predecessor(row)) for row, vote_id in enumerate(votes.vote_ids))
        raise NotEnoughVotes("the test knows enough")

    monkeypatch.setattr(cycle, "refresh_last", refresh)
    train_once(paths, tiny_model, {**CONFIG, "reward": {"head": "last"}})
    assert told == {vote_id: vote_id not in seen for vote_id in told}
    assert set(told.values()) == {True, False}
