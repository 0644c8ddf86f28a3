"""Two processes train as one: equal losses and equal weights, to rounding; and what one of them meets, both know."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from feedback.paths import DataPaths
from tests.train.test_cycle import CONFIG, fill, train_once
from tests.train.tiny_trainer import make_trainer
from train import main
from train.base import Base
from train.order import own_rows
from train.rollout import Sample
from train.sampler import LocalRollouts
from train.team import ALONE, Team

SCRIPT = """
import sys, json, torch
from pathlib import Path
from train.config import TrainConfig
from train.errors import TrainError
from train.launch import joined_by_file
rank = int(sys.argv[2])
with joined_by_file(Path(sys.argv[1]), rank, 2, TrainConfig(device="cpu")) as team:
    part = team.share(5)
    rows = torch.arange(10.0).view(5, 2)[part]
    weight = torch.nn.Parameter(torch.zeros(3))
    other = torch.nn.Parameter(torch.zeros(2, 2))
    if rank == 0:
        weight.grad = torch.ones(3)
    other.grad = torch.full((2, 2), rank + 1.0)
    team.sum_gradients([weight, other])
    def fails():
        if rank == 1:
            raise TrainError("the second one's own line")
    try:
        team.agree(fails)
        met = "nothing"
    except TrainError as error:
        met = f"{type(error).__name__}: {error}"
    if rank == 0:
        team.tell({"do": "greet", "list": [1, "two"]})
    heard = None if rank == 0 else team.hear()
    print(json.dumps({
        "share": [part.start, part.stop], "rows": team.gather(rows, 5).tolist(), "grads": [weight.grad.tolist(),
        other.grad.tolist()], "met": met, "heard": heard, "any": team.any(rank == 1), "most": team.most(rank + 3),
        "figures": team.figures({"sum": rank + 1.0, "top": float(rank)}, largest="top"),
        "lead": team.lead_says([rank + 0.5]), "found": team.lead_found(None if rank == 0 else 7),
    }))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_shares_are_contiguous_and_cover_everything_once() -> None:
    for count in range(12):
        for size in (1, 2, 3, 5):
            shares = [Team(rank, size).share(count) for rank in range(size)]
            assert [at for share in shares for at in range(share.start, share.stop)] == list(range(count))
            lengths = [share.stop - share.start for share in shares]
            assert max(lengths) - min(lengths) <= 1


def test_answers_to_one_prompt_stay_with_one_process() -> None:
    minibatch = [4, 5, 0, 1, 8, 9]
    assert [list(own_rows(minibatch, 2, Team(rank, 2))) for rank in range(2)] == [[4, 5], [0, 1, 8, 9]]
    assert list(own_rows(minibatch, 2, ALONE)) == minibatch


def test_alone_a_team_changes_nothing() -> None:
    assert ALONE.figures({"a": 1.5}) == {"a": 1.5}
    assert (ALONE.total(2.0), ALONE.most(3), ALONE.any(False), ALONE.rounds(4)) == (2.0, 3, False, 4)
    assert ALONE.agree(lambda: "done") == "done"
    assert ALONE.lead_found(None) is None


@pytest.mark.slow
def test_two_processes_share_add_up_and_tell_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store")]
    both = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment())
        for rank in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=200)[0].splitlines()[-1]) for process in both)
    assert (first["share"], second["share"]) == ([0, 2], [2, 5])
    for one in (first, second):
        assert one["rows"] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
        assert one["grads"] == [[1, 1, 1], [[3, 3], [3, 3]]]
        assert (one["any"], one["most"], one["lead"], one["found"]) == (True, 4, [0.5], None)
        assert one["figures"] == {"sum": 3.0, "top": 1.0}
    assert first["met"] == "TeamFailed: process 1 of this cycle failed; its own line says why"
    assert second["met"] == "TrainError: the second one's own line"
    assert second["heard"] == {"do": "greet", "list": [1, "two"]}


def cycle(root: Path, model: Path, processes: int, tuning: str) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """One whole cycle; its metrics, and how far each of the policy's weights went."""
    paths = DataPaths(root)
    paths.create()
    fill(paths, model, edits=True)
    config = {
        **CONFIG,
        "processes": processes,
        "tuning": tuning,
        "full": {"learning_rate": 1e-3},
        "sft": {"min_demonstrations": 20, "learning_rate": 3e-3},
        "ppo": {**CONFIG["ppo"], "iterations": 2},
        "governor": {"max_kl": 1e9, "max_perplexity_ratio": 1e9, "min_distinct_ratio": 0, "final_answers": 30},
    }
    assert train_once(paths, model, config) == 0
    held = json.loads((paths.train / "cycles" / "000001" / "finals.json").read_text())
    lines = (paths.train / "cycles" / "000001" / "metrics.jsonl").read_text().splitlines()
    kept = sorted((paths.train / "cycles" / "000001" / "ppo").glob("iteration-*"))
    first, last = (load_file(folder / "state.safetensors") for folder in (kept[0], kept[-1]))
    moves = [(last[key] - first[key]).flatten() for key in sorted(first) if key.startswith("policy/")]
    return [json.loads(line) for line in [*lines, *map(json.dumps, held)]], torch.cat(moves)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_cycle_of_two_processes_equals_that_of_one(tiny_model: Path, tmp_path: Path, tuning: str) -> None:
    alone, weights = cycle(tmp_path / "one", tiny_model, 1, tuning)
    together, same = cycle(tmp_path / "two", tiny_model, 2, tuning)
    finals, same_finals = alone[3:], together[3:]
    assert [final["iteration"] for final in same_finals] == [final["iteration"] for final in finals]
    for one, two in zip(finals, same_finals, strict=True):  # 30 answers of policies that differ as below
        assert two["score"] == pytest.approx(one["score"], abs=0.1)
    assert finals
    alone, together = alone[:3], together[:3]
    for one, two in zip(alone, together, strict=True):
        assert (one["updates"], one["episodes"]) == (two["updates"], two["episodes"])
    # The last line only judges answers of the last policy. By then the two policies are a thousandth of their way apart
    # (below), and of 960 answers that they were asked for 32 differed in a token: a draw that fell between two shares.
    for one, two in zip(alone[:2], together[:2], strict=True):
        assert one["updates"] > 0
        for name in ("score", "kl", "length", "policy_loss", "value_loss", "grad_norm", "entropy", "approx_kl"):
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), name
    # Adam gives a weight whose gradient is nothing but rounding a whole step either way, so not weight by weight
    assert float((weights - same).norm()) < 0.01 * float(weights.norm())


class Served:
    """Answers as serving gives them: the trainer's own sampler, without its states."""

    local = False

    def __init__(self, base: Base) -> None:
        self._inner = LocalRollouts(base)

    def generate(self, prompts: Sequence[tuple[int, ...]], n: int, **asked: Any) -> list[Sample]:
        return [dataclasses.replace(sample, states=None) for sample in self._inner.generate(prompts, n, **asked)]

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_what_the_lead_gets_from_serving_every_process_learns_from(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DataPaths(tmp_path)
    paths.create()
    fill(paths, tiny_model)
    monkeypatch.setattr(main.Trainer, "_serving_rollouts", lambda _self, base, _name: Served(base))
    found = []
    for processes in (1, 2):
        config = {
            **CONFIG,
            "processes": processes,
            "ppo": {**CONFIG["ppo"], "iterations": 1},
            "rollout": {**CONFIG["rollout"], "source": "serving"},
        }
        assert make_trainer(paths, tiny_model, config, serve_url="http://serving").run_once() == 0
        lines = (paths.train / "cycles" / f"{processes:06d}" / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    alone, together = found
    assert [line["updates"] for line in together] == [line["updates"] for line in alone]
    assert alone[0]["updates"] > 0
    for name in ("score", "policy_loss", "grad_norm", "approx_kl", "sampler_mismatch"):
        assert together[0][name] == pytest.approx(alone[0][name], rel=2e-3, abs=2e-4), name


@pytest.mark.slow
def test_torchrun_starts_a_cycle_and_ends_well(tiny_model: Path, tmp_path: Path) -> None:
    paths = DataPaths(tmp_path / "data")
    paths.create()
    fill(paths, tiny_model)
    sets = [
        "train.lora.rank=4",
        "train.threads=1",
        "train.device=cpu",
        "train.ppo.iterations=2",
        "train.ppo.episodes=48",
        "train.ppo.learning_rate=1e-2",
        "train.ppo.kl_coefficient=0.0",
        "train.governor.enabled=false",
        "train.rollout.max_tokens=8",
        "train.schedule.eval_prompts=8",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [*launcher, "-m", "deploy", "train", "--once", "--data-dir", str(paths.root), "--model", str(tiny_model)]
    done = subprocess.run(
        [*command, *(part for one in sets for part in ("--set", one))],
        env={**environment(), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in paths.adapters.iterdir()] == ["policy-000001"]
