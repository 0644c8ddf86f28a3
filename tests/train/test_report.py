"""The report and the terminal's picture of a cycle: what they say, that they load nothing, that words stay words."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from train.errors import TensorBoardMissing
from train.metrics import TrainMetrics
from train.report import CycleReport, write_report
from train.report.page import _plots, last_question
from train.report.plots import Line, Plot, draw, ticks, wilson
from train.status import StatusBoard
from train.tensorboard import TensorBoard, require
from train.terminal import TerminalProgress

HOSTILE = "<script>alert(1)</script> [bold]&amp;"


def iteration(number: int, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("score", "kl", "length", "entropy", "clip_fraction", "perplexity"), 0.5 + number)
    return {
        "iteration": number,
        **figures,
        "score_std": 0.25,
        "distinct_within": 0.9,
        "explained_variance": 0.1,
        "updates": 4,
        "seconds": {"sample": 30.0, "update": 60.0},
        "within": True,
        "breaches": [],
        **more,
    }


REPORT = CycleReport(
    number=3,
    adapter="policy-000007",
    facts={"Votes": "snapshot-1"},
    iterations=[iteration(0), iteration(1), iteration(2, within=False, breaches=["KL 9.9 nats"])],
    chosen=1,
    max_kl=3.0,
    judgement={
        "accuracy": 0.75,
        "votes": 64,
        "calibration": [{"confidence": 0.6, "accuracy": 0.5, "count": 10}],
        "slices": {"one turn": (0.8, 40)},
    },
    samples=[{"prompt": f"user\n{HOSTILE}\nassistant\n", "before": HOSTILE, "after": "fine"}],
    figures={"base_reward": 0.0, "policy_reward": 1.25, "policy_kl": 1.5},
    config={"seed": 0},
)


def page(tmp_path: Path, **changes: Any) -> str:
    write_report(tmp_path / "report.html", dataclasses.replace(REPORT, **changes))
    return (tmp_path / "report.html").read_text()


def test_the_report_tells_what_was_published_and_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "policy-000007" in text
    assert "+0.00 <i>to</i> +1.25" in text
    assert "KL 9.9 nats" in text
    assert "1 min 30 s" not in text.split("Time of PPO")[0]
    assert "Time of PPO: 4 min 30 s" in text
    assert "prefers-color-scheme" in text or "light-dark(" in text
    assert not re.search(r"<script|<link|<img|src=|url\(|@import|https?:", text)


def test_words_of_people_and_models_stay_words(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [bold]&amp;amp;" in text


def test_a_refused_policy_has_a_report_too(tmp_path: Path) -> None:
    text = page(tmp_path, adapter=None, chosen=0, samples=[], figures={})
    assert "No policy was published" in text
    assert "marked" not in text.split("</style>")[1]
    assert "Answers before and after" not in text


def test_the_finals_say_who_was_published_and_who_broke_what(tmp_path: Path) -> None:
    assert "Finals" not in page(tmp_path)
    finals = [
        {"iteration": 2, "score": 1.5, "kl": 5.25, "perplexity": 1.62, "topic": 0.41, "base_topic": 0.5}
        | {"breaches": ["perplexity <b>"], "seconds": 30.0},
        {"iteration": 1, "score": 1.25, "kl": 3.0, "perplexity": 1.1, "topic": 0.52, "base_topic": 0.5}
        | {"breaches": [], "seconds": 15.0},
    ]
    text = page(tmp_path, finals=finals)
    rows = re.findall(r"<tr><th scope=\"row\">Iteration.*?</tr>", text)
    cells = [re.sub(r"<[^>]+>", "|", row).strip("|").replace("||", "|") for row in rows]
    assert cells == [
        "Iteration 2|+1.50|5.2|1.62|0.41|0.50|perplexity &lt;b&gt;",
        "Iteration 1|+1.25|3.0|1.10|0.52|0.50|published",
    ]
    assert "Time of PPO: 5 min 15 s" in text  # 4 min 30 s of the iterations
    phases = ("sample", "score", "old", "update")
    whole = page(tmp_path, finals=finals, iterations=[iteration(0, seconds=dict.fromkeys(phases, 1.0))])
    colours = re.findall(r'<li class="(p\d)">', whole)
    assert len(colours) == len(set(colours)) == 5  # each phase its own
    assert all(re.search(rf"\.{colour}::before {{ background: var\(--\w+\); }}", whole) for colour in colours)
    refused = page(tmp_path, finals=finals[:1], chosen=0)
    assert "kept the governor's bounds on fresh answers" in refused


def test_gold_is_drawn_beside_the_proxy_where_it_is_known(tmp_path: Path) -> None:
    assert "other votes" not in page(tmp_path)
    assert "other votes" in page(tmp_path, iterations=[iteration(n, gold=0.1 * n) for n in range(3)])


def test_what_an_older_cycle_did_not_measure_is_not_drawn(tmp_path: Path) -> None:
    assert "<b>Topic</b>" not in page(tmp_path)
    assert "<b>Topic</b>" in page(tmp_path, iterations=[iteration(n, topic=0.5) for n in range(3)])


def test_a_figure_that_is_no_number_leaves_a_gap_and_no_nan_in_the_drawing(tmp_path: Path) -> None:
    text = page(tmp_path, iterations=[iteration(0, score=math.nan), iteration(1, perplexity=None), iteration(2)])
    assert "nan" not in re.findall(r"<body>.*", text, re.S)[0].replace("</details>", "")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 3.0, [0, 1, 2, 3]), (-2.0, 6.0, [-2, 0, 2, 4, 6]), (0.85, 1.0, [0.85, 0.9, 0.95, 1.0])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_points_lie_where_their_numbers_say() -> None:
    drawn = draw(Plot("T", lines=[Line([(0, 0), (1, 5), (2, 10)])]))
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]*)"', drawn)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y2


def test_wilsons_interval_is_the_textbooks() -> None:
    low, high = wilson(0.8, 10)  # Wilson's score interval for 8 of 10: 0.4902 to 0.9433
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert wilson(0.5, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("system\nBe kind.\nuser\nWho?\nassistant\nMe.\nuser\nWhy?\nassistant\n", "Why?"),
        ("no roles here", "no roles here"),
    ],
)
def test_the_last_question_is_shown(prompt: str, question: str) -> None:
    assert last_question(prompt) == question


def terminal() -> tuple[TerminalProgress, io.StringIO]:
    out = io.StringIO()
    return TerminalProgress(out, Console(file=out, force_terminal=True, width=140, color_system=None)), out


def test_a_terminal_sees_phase_figures_and_answers() -> None:
    progress, out = terminal()
    with progress:
        progress.observe({"cycle": 3, "phase": "reward", "progress": 0.1})
        for number in (0, 1):
            progress.observe({"cycle": 3, "phase": "ppo", "progress": 0.4, "figures": iteration(number)})
        progress.observe({"cycle": 3, "phase": "evaluate", "progress": 0.9, "eta_s": 75, "samples": REPORT.samples})
    text = out.getvalue()
    assert "cycle 3" in text
    assert "1:15 to go" in text
    last = text[text.rindex("iteration") :]
    assert re.search(r"\b0\b.*\+0\.50.*\b90\b", last)
    assert re.search(r"\b1\b.*\+1\.50.*\b90\b", last)
    assert "[bold]&amp;" in last  # as it was written: no markup is read in it
    assert "fine" in last


def test_nothing_is_shown_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with TerminalProgress(out) as progress:
        progress.observe({"cycle": 3, "phase": "ppo", "progress": 0.4})
    assert out.getvalue() == ""


def test_iterations_and_the_reward_model_are_metrics() -> None:
    metrics = TrainMetrics()
    metrics.observe(
        {"phase": "ppo", "figures": iteration(1, eos_share=0.25), "reward_model": {"reward_accuracy": 0.75}}
    )
    text = generate_latest(metrics.registry).decode()
    assert "hustings_train_eos_share 0.25" in text
    assert "hustings_train_perplexity 1.5" in text
    assert "hustings_train_within_bounds 1.0" in text
    assert "hustings_train_reward_accuracy 0.75" in text
    assert 'hustings_train_step_seconds{step="update"} 60.0' in text


def test_what_a_cycle_does_not_know_is_not_told_by_the_figure_of_an_earlier_one() -> None:
    metrics = TrainMetrics()
    metrics.observe({"figures": iteration(1, gold=0.5), "reward_model": {"reward_by_chance": 0.05}})
    metrics.observe({"figures": None, "reward_model": None})  # a cycle begins
    assert "hustings_train_reward_by_chance 0.05" in generate_latest(metrics.registry).decode()
    metrics.observe({"figures": iteration(0, gold=None), "reward_model": {"reward_accuracy": 0.75}})
    text = generate_latest(metrics.registry).decode()
    assert "hustings_train_reward_by_chance NaN" in text
    assert "hustings_train_gold NaN" in text


def test_a_cycle_has_no_win_rate_until_it_has_its_own(tmp_path: Path) -> None:
    """A cycle that was refused before its evaluation kept the win rate of the one before beside its own number."""
    metrics = TrainMetrics()
    board = StatusBoard(tmp_path / "status.json", metrics.observe)
    text = generate_latest(metrics.registry).decode()  # of a trainer that has just started
    for name in ("win_rate", "within_bounds", "reward_accuracy"):
        assert f"hustings_train_{name} NaN" in text
    board.begin(3)
    board.phase("sft", 0.5, sft_loss=2.5)
    board.phase("ppo", 0.5, kl=6.0)
    board.update(win_rate=0.75)
    board.begin(4)
    board.phase("reward")
    board.update(phase="failed", message="refused", force=True)
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["cycle"], told["win_rate"], told["sft_loss"], told["kl"]) == (4, None, None, 6.0)
    text = generate_latest(metrics.registry).decode()
    assert "hustings_train_win_rate NaN" in text
    assert "hustings_train_sft_loss NaN" in text
    assert "hustings_train_kl 6.0" in text  # the last iteration's, whosever it was
    board.update(win_rate=0.5)
    assert "hustings_train_win_rate 0.5" in generate_latest(metrics.registry).decode()


def test_an_iteration_without_an_update_has_no_figures_of_one(tmp_path: Path) -> None:
    """Entropy 0 would read as a policy that has collapsed."""
    metrics = TrainMetrics()
    metrics.observe({"figures": iteration(1, grad_norm=2.5), "entropy": 1.5})
    metrics.observe({"figures": iteration(2, updates=0, grad_norm=0.0, kl=3.0), "entropy": 1.5})
    text = generate_latest(metrics.registry).decode()
    assert "hustings_train_grad_norm 2.5" in text
    assert "hustings_train_kl_coefficient NaN" in text  # not in this record, and no figure of an update
    assert "hustings_train_updates 0.0" in text
    rows = [iteration(0, entropy=7.0), iteration(1, entropy=0.0, updates=0), iteration(2, entropy=6.0), iteration(3)]
    rows[3]["updates"] = 0
    drawn = {plot.title: plot for plot in _plots(dataclasses.replace(REPORT, iterations=rows))}
    entropies = [y for _, y in drawn["Entropy"].lines[0].points]
    assert (entropies[0], entropies[2]) == (7.0, 6.0)
    assert math.isnan(entropies[1])
    assert math.isnan(entropies[3])


def test_every_metric_of_the_trainer_has_its_formula_in_the_docs() -> None:
    told = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for family in TrainMetrics().registry.collect():
        name = family.name.removeprefix("hustings_train")
        assert name in told, family.name


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_and_a_repeated_iteration_replaces_itself(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, 3)
    for number, kl in ((0, 1.0), (1, 2.0), (1, 3.0)):
        board.write(number, {"kl": kl, "seconds": {"sample": 4.0}, "breaches": ["x"], "gold": math.nan})
    seen = EventAccumulator(str(tmp_path / "cycle-000003")).Reload()
    assert sorted(seen.Tags()["scalars"]) == ["train/kl", "train/seconds/sample"]
    assert [(event.step, event.value) for event in seen.Scalars("train/kl")] == [(0, 1.0), (1, 3.0)]


def test_missing_tensorboard_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TensorBoardMissing, match=r"pip install 'hustings\[tensorboard\]'"):
        require()
