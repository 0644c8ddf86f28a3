"""What the comparison with TRL makes both sides work on, and what it says of their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer import data, learning_data
from benchmarks.peer.report import alone, compare, report, verdict_of
from feedback.simulator.topics import prompts


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


def test_runs_beside_busy_others_may_be_left_out() -> None:
    rows = [run("ppo-1", "trl", cpu_s=100.0, others_cpu_s=taken) for taken in (5.0, 5.1)] + [run("learning-mix", "trl")]
    assert alone(rows, 0.05) == [rows[0], rows[2]]


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


class VotedPairs:
    """A stand-in for `benchmarks.learning.Bench`: answers are words by number, the even ones of them long."""

    def __init__(self) -> None:
        self.train = prompts("train", 60, seed=1)

    def ids(self, prompt: Any) -> tuple[int, ...]:
        return (1, *range(100, 100 + self.train.index(prompt)))

    def text(self, response: tuple[int, ...]) -> str:
        return " ".join("extraordinarily" if token % 2 == 0 else "so" for token in response)

    def answers(self, name: str, asked: Any, n: int, seed: int) -> list[tuple[int, ...]]:
        assert (name, n) == ("train", 2)
        return [((3, 5, 7) if (at // 2 + at) % 2 else (2, 4, 6)) for at in range(2 * len(asked))]


def test_trl_learns_from_the_votes_that_named_a_winner_and_is_judged_on_other_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning_data, "_bench", lambda _job: VotedPairs())
    found = learning_data.votes({"utility": "plain_words", "decisive": 40, "seed": 6})
    assert len(found["train"]) == 40
    assert len(found["prompts"]) == 60
    flipped = sum(pair["chosen_ids"] == (2, 4, 6) for pair in found["train"])  # 15% of plain words' voters err
    assert 0 < flipped < 15
    assert len(found["held_out"]) == 20
    assert all(pair["chosen_ids"] == (3, 5, 7) for pair in found["held_out"])  # no noise here
    voted = {pair["prompt_ids"] for pair in found["train"]}
    assert not voted & {pair["prompt_ids"] for pair in found["held_out"]}
