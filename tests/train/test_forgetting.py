"""Reports and checkpoints of cycles whose voters were forgotten."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from feedback.contracts import ReviewItem, ReviewPool, VoterForgotten
from feedback.dataset import Dataset
from feedback.paths import DataPaths
from tests.feedback.events import vote
from tests.train.test_report import REPORT
from train import forgetting
from train.cycle_state import CycleState, cycles_folder, save_state
from train.forgetting import Forgetting
from train.report import without_samples, write_report
from train.status import StatusBoard

ASKED = "user\nHow do I tell <h2>Reward model, on votes that it had not seen</h2> my landlord?\nassistant\n"


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    made = DataPaths(tmp_path)
    made.create()
    return made


def cycle(paths: DataPaths, number: int, snapshot: str) -> Path:
    """A cycle that has ended, with its report and a checkpoint."""
    state = CycleState(number=number, config={}, snapshot=snapshot, outcome="published").finished()
    save_state(cycles_folder(paths), state)
    folder = cycles_folder(paths) / f"{number:06d}"
    sample = {"prompt": ASKED, "before": "Politely.", "after": "Kindly."}
    write_report(folder / "report.html", dataclasses.replace(REPORT, number=number, samples=[sample]))
    for phase in ("ppo", "sft"):
        (folder / phase / "iteration-0001").mkdir(parents=True)
    return folder


def forget(dataset: Dataset) -> None:
    dataset.forget(VoterForgotten(event_id="f", voter="v_0", until=vote(9).cast_at))


def test_words_go_from_the_cycles_that_held_the_voter_and_from_no_other(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "EVERY_S", 0.0)
    dataset = Dataset(paths.dataset)
    dataset.append_votes([vote(1)])
    without = cycle(paths, 1, dataset.build_snapshot().id)
    dataset.append_votes([vote(0)])
    holding = cycle(paths, 2, dataset.build_snapshot().id)
    status = StatusBoard(paths.train / "status.json")
    status.update(cycle=2, samples=[{"prompt": ASKED, "before": "Politely.", "after": "Kindly."}])
    look = Forgetting(paths, dataset, status).look

    look()
    assert "landlord" in (holding / "report.html").read_text()

    forget(dataset)
    look()
    report = (holding / "report.html").read_text()
    assert "landlord" not in report
    assert "Politely" not in report
    assert "asked to be forgotten" in report
    assert "Reward model, on votes that it had not seen" in report  # the rest stays
    assert report.rstrip().endswith("</html>")
    assert not (holding / "ppo").exists()
    assert not (holding / "sft").exists()  # a warm start learns from people's own answers
    assert status.status["samples"] == []
    assert "landlord" in (without / "report.html").read_text()
    assert (without / "ppo").exists()
    assert (without / "sft").exists()


def test_prepared_pairs_of_such_a_cycle_are_shown_to_nobody_any_more(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would be asked the forgotten voter's question (train.review.chats), or those of an import taken back."""
    monkeypatch.setattr(forgetting, "EVERY_S", 0.0)
    dataset = Dataset(paths.dataset)
    dataset.append_votes([vote(0)])
    state = CycleState(number=1, config={}, snapshot=dataset.build_snapshot().id, reward_model="rm", outcome="refused")
    save_state(cycles_folder(paths), state)
    completions = vote(0).pair.completions
    asked = vote(0).pair.messages
    item = ReviewItem(
        item_id="i", messages=asked, prompt_token_ids=(1,), completions=completions, propensity=1, information=0
    )
    pool = ReviewPool(reward_model="other", base_model="b", base_fingerprint="f", adapter=None, items=(item,))
    paths.review_pool.parent.mkdir(parents=True, exist_ok=True)
    paths.review_pool.write_text(pool.model_dump_json())
    look = Forgetting(paths, dataset, StatusBoard(paths.train / "status.json")).look
    forget(dataset)
    look()
    assert paths.review_pool.is_file()  # another cycle's
    paths.review_pool.write_text(pool.model_copy(update={"reward_model": "rm"}).model_dump_json())
    look = Forgetting(paths, dataset, StatusBoard(paths.train / "status.json")).look
    look()
    assert not paths.review_pool.exists()
    look()


def test_a_file_that_can_not_be_changed_now_is_changed_later(paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "EVERY_S", 0.0)
    dataset = Dataset(paths.dataset)
    dataset.append_votes([vote(0)])
    folder = cycle(paths, 1, dataset.build_snapshot().id)
    forget(dataset)
    look = Forgetting(paths, dataset, StatusBoard(paths.train / "status.json")).look

    def refuse(*_args: object) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        look()
    assert (folder / "ppo").exists()
    look()
    assert not (folder / "ppo").exists()


def test_an_open_cycle_is_left_to_its_own_end(paths: DataPaths) -> None:
    dataset = Dataset(paths.dataset)
    dataset.append_votes([vote(0)])
    folder = cycle(paths, 1, dataset.build_snapshot().id)
    state = CycleState(number=1, config={}, snapshot=dataset.snapshots()[0].id)
    save_state(cycles_folder(paths), state)
    forget(dataset)
    Forgetting(paths, dataset, StatusBoard(paths.train / "status.json")).look()
    assert (folder / "ppo").exists()


def test_a_page_without_answers_or_without_them_already_stays_as_it_is(tmp_path: Path) -> None:
    write_report(tmp_path / "none.html", dataclasses.replace(REPORT, samples=[]))
    none = (tmp_path / "none.html").read_text()
    assert without_samples(none) == none
    write_report(tmp_path / "some.html", REPORT)
    once = without_samples((tmp_path / "some.html").read_text())
    assert without_samples(once) == once
