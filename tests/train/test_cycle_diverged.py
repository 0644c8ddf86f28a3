"""A training run that blows up publishes nothing and leaves the incumbent as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedback.paths import DataPaths
from tests.train.test_cycle import CONFIG, digest, fill, train_once
from train.cycle_state import all_cycles

pytestmark = pytest.mark.slow


def test_a_cycle_whose_loss_is_not_finite_ends_in_one_line_beside_an_untouched_incumbent(
    tmp_path: Path, tiny_model: Path
) -> None:
    paths = DataPaths(tmp_path / "data")
    paths.create()
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model) == 0
    incumbent = paths.adapters / "policy-000001"
    before = digest(incumbent), (incumbent / "manifest.json").read_bytes()
    fill(paths, tiny_model, seed=1)
    wild = {**CONFIG, "ppo": {**CONFIG["ppo"], "learning_rate": 1e30}}
    assert train_once(paths, tiny_model, wild) == 1
    state = all_cycles(paths)[-1]
    assert state.outcome == "refused"
    assert "not finite; lower train.ppo.learning_rate" in (state.reason or "")
    assert "\n" not in (state.reason or "")
    assert [folder.name for folder in paths.adapters.iterdir()] == ["policy-000001"]
    assert (digest(incumbent), (incumbent / "manifest.json").read_bytes()) == before
