"""Want of disk and memory: one line that names what to change, nothing half-written, and the cycle goes on."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedback.contracts import ReviewPool
from feedback.dataset.errors import DatasetFull, from_os
from feedback.paths import DataPaths
from tests.train.test_cycle import CONFIG, digest, fill, train_once
from train import checkpoint, review
from train.config import TrainConfig, with_resources_of
from train.cycle_state import all_cycles
from train.lora import AdapterSet
from train.process import shortage
from train.reward import extract
from train.update import Updater


@contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    """The kernel refuses longer ones: as near to a full disk as a test can come without being root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_finds_no_room_leaves_nothing_and_can_be_written_later(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(4096)}
    with files_no_larger_than(8192), pytest.raises(Exception) as caught:  # noqa: PT011 - whatever safetensors raises
        checkpoint.save(tmp_path, 0, tensors, {})
    line = shortage(caught.value, TrainConfig(), "ppo")
    assert line is not None
    assert "disk is full" in line
    assert list(tmp_path.iterdir()) == []
    checkpoint.save(tmp_path, 0, tensors, {})
    assert checkpoint.latest(tmp_path) == 0
    with files_no_larger_than(64), pytest.raises(Exception):  # noqa: B017, PT011
        checkpoint.slim(tmp_path, 0, "weight")
    assert torch.equal(checkpoint.load(tmp_path, 0)[0]["weight"], tensors["weight"])
    assert sorted(path.name for path in (tmp_path / "iteration-0000").iterdir()) == ["state.json", "state.safetensors"]


def test_features_and_prepared_pairs_that_find_no_room_leave_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "features.safetensors"
    extract._replace(kept, {"keys": np.zeros(4, dtype=np.uint8)})
    before = kept.read_bytes()
    with files_no_larger_than(8192), pytest.raises(Exception):  # noqa: B017, PT011 - whatever safetensors raises
        extract._replace(kept, {"keys": np.zeros(16384, dtype=np.uint8)})
    pool = ReviewPool(reward_model="r", base_model="b", base_fingerprint="f", adapter=None, items=())
    with files_no_larger_than(64), pytest.raises(OSError, match="too large"):
        review.write(pool, tmp_path / "pool.json")
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert kept.read_bytes() == before


def test_a_slimmed_checkpoint_is_on_the_disk_before_it_takes_the_whole_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 0, {"policy/w": torch.ones(8), "moments": torch.ones(8)}, {})
    synced: list[str] = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: synced.append(path.name) if path.exists() else None)
    checkpoint.slim(tmp_path, 0, "policy/")
    assert synced == [".slim"]
    assert checkpoint.load(tmp_path, 0)[0].keys() == {"policy/w"}


@pytest.mark.parametrize(
    ("error", "phase", "said"),
    [
        (MemoryError(), "features", "lower train.reward.batch_tokens (now 2048)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "update", "train.ppo.micro_tokens (now 512)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "sample",
            "train.rollout.batch (now 64)",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "ppo", "/data/x"),
        (DatasetFull("no space left to write p"), "snapshot", "no space left to write p"),
        (from_os(PermissionError(errno.EACCES, "denied"), Path("p")), "snapshot", "p can't be written (denied)"),
    ],
)
def test_the_line_names_what_to_change(error: Exception, phase: str, said: str) -> None:
    line = shortage(error, TrainConfig(), phase)
    assert line is not None
    assert said in line
    assert "\n" not in line


def test_other_faults_are_no_shortage_and_a_whole_policy_is_told_of_lora() -> None:
    assert shortage(ValueError("odd"), TrainConfig(), "ppo") is None
    assert 'train.tuning = "lora"' in (shortage(MemoryError(), TrainConfig(tuning="full"), "update") or "")


def test_a_cycle_goes_on_with_todays_memory_settings_and_its_own_everything_else() -> None:
    began = TrainConfig.model_validate({"seed": 3, "ppo": {"learning_rate": 0.5}, "processes": 2})
    today = TrainConfig.model_validate(
        {"ppo": {"micro_tokens": 64, "learning_rate": 0.1}, "rollout": {"batch": 2, "temperature": 0.5}}
    )
    goes_on = with_resources_of(began, today)
    assert (goes_on.ppo.micro_tokens, goes_on.rollout.batch, goes_on.processes) == (64, 2, 1)
    assert (goes_on.seed, goes_on.ppo.learning_rate, goes_on.rollout.temperature) == (3, 0.5, 1.0)


@pytest.mark.slow
def test_a_cycle_that_runs_out_of_memory_and_disk_goes_on_when_there_is_some(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DataPaths(tmp_path / "data")
    paths.create()
    fill(paths, tiny_model)
    (paths.adapters / "policy-000001").mkdir()
    (paths.adapters / "policy-000001" / "manifest.json").write_text("the incumbent")

    def message() -> str:
        return str(json.loads((paths.train / "status.json").read_text())["message"])

    def out_of_memory(*_args: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def no_room(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "run", out_of_memory)
        assert train_once(paths, tiny_model) == 1
    assert "lower train.ppo.micro_tokens (now 512)" in message()
    less: dict[str, Any] = {**CONFIG, "ppo": {**CONFIG["ppo"], "micro_tokens": 128}}
    with monkeypatch.context() as patch:
        patch.setattr(AdapterSet, "save", no_room)
        assert train_once(paths, tiny_model, less) == 1
    assert "the disk is full" in message()
    assert sorted(path.name for path in paths.adapters.iterdir()) == ["policy-000001"]
    assert [state.outcome for state in all_cycles(paths)] == [None]
    assert train_once(paths, tiny_model, less) == 0
    assert (paths.adapters / "policy-000001" / "manifest.json").read_text() == "the incumbent"
    assert len(digest(paths.adapters / "policy-000002")) == 64
    assert all_cycles(paths)[0].config["ppo"]["micro_tokens"] == 128
