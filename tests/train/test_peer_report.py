"""What the comparison with TRL says of its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer import data
from benchmarks.peer.report import compare, report, verdict_of


def run(bench: str, who: str, **figures: Any) -> dict[str, Any]:
    return {"bench": bench, "who": who, **figures}


def test_rates_and_memory_are_compared_by_their_medians() -> None:
    rows = [run("ppo-1", "hustings", episodes_per_s=speed, peak_gib=2.0, cpu_s=10.0) for speed in (1.0, 1.2, 0.2)]
    rows += [run("ppo-1", "trl", episodes_per_s=0.2, peak_gib=8.0, cpu_s=45.0)]
    speed, memory = compare("ppo-1", rows)
    assert speed["ours"] == {"median": 1.0, "least": 0.2, "most": 1.2, "runs": 3}
    assert (speed["ratio"], speed["cpu_ratio"], memory["ratio"]) == (5.0, 4.5, 0.25)
    assert (verdict_of(speed), verdict_of(memory)) == ("reached", "reached")


def test_a_missed_aim_is_called_missed() -> None:
    rows = [run("reward", who, pairs_per_s=1.0, peak_gib=1.0, accuracy=0.8, cpu_s=1.0) for who in ("hustings", "trl")]
    assert verdict_of(compare("reward", rows)[0]) == "missed"


def test_one_side_alone_makes_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([run("ppo-1", "hustings", episodes_per_s=1.0, peak_gib=1.0, cpu_s=1.0)], None) == 1
    assert "no runs of both sides" in capsys.readouterr().out


def test_the_baseline_file_holds_comparisons_and_runs_without_their_samples(tmp_path: Path) -> None:
    rows = [run("ppo-4", who, episodes_per_s=1.0, peak_gib=1.0, cpu_s=1.0, samples=["x"]) for who in ("a", "trl")]
    assert report(rows, tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [line["measure"] for line in found["comparisons"]] == ["episodes_per_s", "peak_gib"]
    assert "samples" not in found["runs"][0]


def test_equal_seeds_give_equal_work_and_length_does_not_tell_good_from_bad() -> None:
    pairs = data.pairs(400, seed=3)
    assert pairs == data.pairs(400, seed=3)
    longer = [len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs]
    assert 0.4 < sum(longer) / len(longer) < 0.7
    assert {messages[-1]["role"] for messages in data.conversations(40, seed=1)} == {"user"}
    assert {len(messages) for messages in data.conversations(40, seed=1)} >= {1, 3, 5}
