"""What a trainer meets in weeks of running: broken bases, other bases, upgrades, full disks, a ledger that is away."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from feedback.config import FeedbackConfig
from feedback.dataset.errors import DatasetFull
from feedback.paths import DataPaths
from tests.serve.adapters import publish as write_adapter
from tests.train.families import make
from tests.train.test_cycle import CONFIG, fill, train_once
from tests.train.tiny_trainer import make_trainer
from train import main, reading
from train.base import POLICY, Base
from train.config import TrainConfig
from train.cycle_state import (
    HISTORY,
    CycleState,
    all_cycles,
    cycles_folder,
    history,
    last_cycle,
    open_cycle,
    save_state,
)
from train.errors import BaseMismatch, PromptRefused
from train.learning import Learning
from train.lora import AdapterSet
from train.reward.extract import vocabulary_for
from train.rollout import ServingRollouts
from train.status import StatusBoard
from train.texts import TextReader


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    made = DataPaths(tmp_path / "data")
    made.create()
    return made


def tuned(model: Path, folder: Path) -> Path:
    """Another base of the same shape."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = {name: value * 1.5 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def message(paths: DataPaths) -> str:
    return str(json.loads((paths.train / "status.json").read_text())["message"])


@pytest.mark.slow
def test_a_base_that_cant_be_read_keeps_one_cycle_waiting_and_no_more(
    paths: DataPaths, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(paths, tiny_model)
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    for file in broken.glob("*.safetensors"):
        file.unlink()
    stop, waits = threading.Event(), iter(range(3))

    def wait(_seconds: float) -> bool:
        if next(waits, None) is None:
            stop.set()
        return stop.is_set()

    monkeypatch.setattr(stop, "wait", wait)
    make_trainer(paths, broken, CONFIG, stop).watch()
    assert next(waits, None) is None, "every attempt was followed by a wait"
    (state,) = all_cycles(paths)
    assert (state.number, state.outcome, state.snapshot) == (1, None, None)
    assert "give a Hugging Face model folder" in message(paths)
    # nothing has been done yet: the cycle is begun with what the configuration says now
    assert open_cycle(paths, TrainConfig(seed=7)).config["seed"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), DatasetFull("no room")])
def test_want_of_memory_or_disk_while_reading_ahead_is_told_and_waited_for(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_args: object) -> None:
        raise error

    fill(paths, tiny_model, 24)
    monkeypatch.setattr(reading, "read_features", short)
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda _seconds: stop.set())
    make_trainer(paths, tiny_model, {**CONFIG, "schedule": {**CONFIG["schedule"], "new_comparisons": 24}}, stop).watch()
    assert all_cycles(paths) == []


@pytest.mark.slow
def test_a_worry_is_forgotten_when_reading_ahead_goes_well_again(paths: DataPaths, tiny_model: Path) -> None:
    fill(paths, tiny_model, 24)
    trainer = make_trainer(paths, tiny_model, CONFIG)
    trainer._worry = "no room"
    trainer._read_ahead()
    assert trainer._worry == ""


@pytest.mark.slow
def test_want_of_memory_while_a_base_is_vetted_is_no_fault_of_the_base(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"

    def short(*_args: object, **_more: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(Base, "forward", short)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Base.load(tiny_model)


@pytest.mark.slow
def test_prompts_that_are_all_too_long_end_the_cycle_in_one_line(paths: DataPaths, tiny_model: Path) -> None:
    fill(paths, tiny_model, 24)
    assert train_once(paths, tiny_model, {**CONFIG, "rollout": {"max_tokens": 8, "max_prompt_tokens": 3}}) == 1
    (state,) = all_cycles(paths)
    assert state.outcome == "refused"
    assert "of at most 3 tokens (train.rollout.max_prompt_tokens)" in (state.reason or "")


@pytest.mark.slow
def test_a_ledger_that_is_away_holds_the_cycle_up_and_does_not_end_it(paths: DataPaths, tiny_model: Path) -> None:
    fill(paths, tiny_model)
    config = {**CONFIG, "schedule": {**CONFIG["schedule"], "start_from": "incumbent"}}
    away = FeedbackConfig(ledger_url="postgresql+psycopg://nobody:none@127.0.0.1:9/none")
    assert main.run(TrainConfig.model_validate(config), away, paths, str(tiny_model), None, True, None, None) == 1
    (state,) = all_cycles(paths)
    assert state.outcome is None
    assert state.reward_model is not None
    assert "start the database or mend its address" in message(paths)


@pytest.mark.slow
def test_another_base_of_the_same_depth_is_trained_and_not_judged_by_the_last_ones_reward_model(
    paths: DataPaths, tiny_model: Path, tmp_path: Path
) -> None:
    settings = json.loads((tiny_model / "config.json").read_text())
    same = {name: settings[name] for name in ("num_hidden_layers", "vocab_size")}
    other = make("Llama", {**same, "hidden_size": 2 * settings["hidden_size"]}, tmp_path / "wider")
    for file in tiny_model.iterdir():
        if file.name not in {"config.json", "model.safetensors"}:
            shutil.copy(file, other)
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model) == 0
    fill(paths, tiny_model, seed=1)
    train_once(paths, other)
    assert all_cycles(paths)[1].reward_model is not None


@pytest.mark.slow
def test_a_base_replaced_in_mid_cycle_is_not_trained_on_the_old_ones_reward_model(
    paths: DataPaths, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(paths, tiny_model)
    other = tuned(tiny_model, tmp_path / "other")
    with monkeypatch.context() as patch:

        def killed(*_args: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("train.learning.Learning.run", killed)
        with pytest.raises(KeyboardInterrupt):
            train_once(paths, tiny_model)
    assert train_once(paths, other) == 1
    (state,) = all_cycles(paths)
    assert state.outcome == "refused"
    assert "is of another base model" in (state.reason or "")


@pytest.mark.slow
def test_a_warm_start_that_was_cut_off_keeps_its_parent_whoever_is_in_office_by_then(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(paths, tiny_model, edits=True)
    base = Base.load(tiny_model, TrainConfig.model_validate(CONFIG).lora)
    base.adapters.add(POLICY, 0)
    for name in ("policy-000001", "policy-000002"):
        base.adapters.save(POLICY, paths.adapters / name, "tiny")
    office = ["policy-000001"]
    monkeypatch.setattr(main.Trainer, "_incumbent", lambda _self: paths.adapters / office[-1])
    config = {
        **CONFIG,
        "ppo": {**CONFIG["ppo"], "iterations": 1},
        "schedule": {**CONFIG["schedule"], "start_from": "incumbent"},
        "sft": {"min_demonstrations": 20, "epochs": 1, "learning_rate": 3e-3},
    }
    with monkeypatch.context() as patch:

        def killed(*_args: object, **_more: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("train.learning.PpoTrainer", killed)
        with pytest.raises(KeyboardInterrupt):
            train_once(paths, tiny_model, config)
    office.append("policy-000002")
    train_once(paths, tiny_model, config)
    assert all_cycles(paths)[0].parent == "policy-000001"


@pytest.mark.slow
def test_training_does_not_go_on_from_an_office_holder_of_another_base(
    paths: DataPaths, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model) == 0
    monkeypatch.setattr(main.Trainer, "_incumbent", lambda _self: paths.adapters / "policy-000001")
    config = {**CONFIG, "schedule": {**CONFIG["schedule"], "start_from": "incumbent"}}
    assert train_once(paths, tuned(tiny_model, tmp_path / "other"), config) == 1
    state = all_cycles(paths)[1]
    assert (state.outcome, state.adapter) == ("refused", None)
    assert "policy-000001 is in office and was made for another base" in (state.reason or "")


def test_an_open_cycle_of_another_version_has_failed_and_the_next_one_begins(paths: DataPaths) -> None:
    old = {**TrainConfig().model_dump(mode="json"), "gone_since": 1}
    save_state(cycles_folder(paths), CycleState(number=4, config=old, snapshot="snapshot-1"))
    assert open_cycle(paths, TrainConfig()).number == 5
    before = all_cycles(paths)[0]
    assert (before.outcome, before.finished_at is not None) == ("failed", True)
    assert "train.gone_since" in (before.reason or "")


def test_thousands_of_cycles_make_neither_the_wait_nor_the_status_longer(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, HISTORY + 12):
        folder = cycles_folder(paths) / f"{number:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(CycleState(number=number, config={}, outcome="refused").model_dump_json())
    assert [cycle["cycle"] for cycle in history(paths)] == list(range(12, HISTORY + 12))
    read: list[Path] = []
    monkeypatch.setattr("train.cycle_state.load_state", read.append)
    last_cycle(paths)
    assert [folder.name for folder in read] == [f"{HISTORY + 11:06d}"]


def test_a_status_that_cant_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = StatusBoard(tmp_path / "status.json")
    with monkeypatch.context() as patch:

        def full(_handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("os.fsync", full)
        board.update(message="the disk is full", force=True)
    assert list(tmp_path.iterdir()) == []
    board.update(message="room again", force=True)
    assert "room again" in (tmp_path / "status.json").read_text()


def test_a_policy_that_finds_no_room_on_its_way_to_serving_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    rollouts = ServingRollouts("http://127.0.0.1:9", "token", tmp_path, half, run="c1-1")
    with pytest.raises(OSError, match="No space"):
        rollouts.generate([(1, 2)], 1, max_tokens=4, temperature=1.0, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_that_the_chat_template_refuses_is_left_out(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    texts = TextReader.of(tokenizer)
    plain = {"prompt": [{"role": "user", "content": "Why?"}], "prompt_token_ids": None}
    odd = {"prompt": [{"role": "system", "content": "Be kind."}, *plain["prompt"]], "prompt_token_ids": None}
    assert texts.prompt(plain)["prompt_token_ids"]
    assert texts.prompt(odd) is odd
    with pytest.raises(PromptRefused, match="System role not supported"):
        texts.prompt_ids(odd["prompt"])


def test_an_incumbent_whose_folder_is_gone_is_told_by_name(tiny_model: Path, tmp_path: Path) -> None:
    adapters: AdapterSet = Base.load(tiny_model).adapters
    with pytest.raises(BaseMismatch, match=r"policy-000007 is gone: bring it back"):
        adapters.load("policy", tmp_path / "policy-000007")


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{"), lambda path: (path.unlink(), path.mkdir())])
def test_an_incumbent_whose_manifest_is_damaged_is_told_by_name(tmp_path: Path, spoil: Any) -> None:
    write_adapter(tmp_path, 7)
    spoil(tmp_path / "policy-000007" / "manifest.json")
    tools = SimpleNamespace(base=SimpleNamespace(adapters=None, fingerprint="f" * 64))
    with pytest.raises(BaseMismatch, match=r"policy-000007 is in office and its manifest can't be read .*start_from"):
        Learning._load(SimpleNamespace(_tools=tools), tmp_path / "policy-000007")  # type: ignore[arg-type]


def test_what_a_killed_trainer_was_handing_to_serving_goes_with_the_next_start(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (paths.rollout_adapters / "rollout-c3-4711-0").mkdir()
    monkeypatch.setattr(main.Trainer, "run_once", lambda _self: 0)
    config = TrainConfig.model_validate(CONFIG)
    assert main.run(config, FeedbackConfig(), paths, "nothing", None, True, None, None) == 0
    assert list(paths.rollout_adapters.iterdir()) == []


def test_what_was_said_by_a_base_with_another_tokenizer_is_read_anew(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = TextReader.of(tokenizer)
    question = [{"role": "user", "content": "the river"}]
    own, size = texts.prompt_ids(question), len(tokenizer)
    row: dict[str, Any] = {
        "prompt": question,
        "prompt_token_ids": list(own),
        "chosen": [{"role": "assistant", "content": "the city"}],
        "chosen_token_ids": [5, 6],
        "chosen_finish_reason": "length",
        "rejected": [{"role": "assistant", "content": "the garden"}],
        "rejected_token_ids": [7],
        "rejected_finish_reason": "length",
    }
    assert texts.vote(row) is row
    assert texts.prompt(row) is row
    for foreign in ([7, 8, 9, 10], [*own, size]):  # other words of this tokenizer's; no word of it
        read = texts.vote({**row, "prompt_token_ids": foreign})
        assert read["prompt_token_ids"] == own
        assert read["chosen_token_ids"] == tuple(tokenizer("the city", add_special_tokens=False)["input_ids"])
        assert texts.prompt({**row, "prompt_token_ids": foreign})["prompt_token_ids"] == own


def test_tables_of_features_are_made_anew_for_another_tokenizer_of_the_same_size(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    class Swapped:
        """The same ids for other words."""

        def __init__(self, own: Any) -> None:
            self._own = own

        def __getattr__(self, name: str) -> Any:
            return getattr(self._own, name)

        def __len__(self) -> int:
            return len(self._own)

        def batch_decode(self, rows: list[list[int]], **more: Any) -> list[str]:
            size = len(self._own)
            return list(self._own.batch_decode([[*row[:-1], size - 1 - row[-1]] for row in rows], **more))

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    size, prompts = len(tokenizer) + 3, [(5, 6), (7,)]
    first = vocabulary_for(tmp_path, tokenizer, size, prompts)
    assert torch.equal(vocabulary_for(tmp_path, tokenizer, size, prompts).surface, first.surface)
    other = vocabulary_for(tmp_path, Swapped(tokenizer), size, prompts)
    assert not torch.equal(other.surface, first.surface)
    assert torch.equal(vocabulary_for(tmp_path, Swapped(tokenizer), size, prompts).surface, other.surface)


@pytest.mark.slow
def test_no_more_answers_are_decoded_at_once_than_the_configuration_allows(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.sampler import _Decoding

    widths: list[int] = []
    run = _Decoding.run

    def seen(decoding: _Decoding) -> Any:
        widths.append(len(decoding._prompts))
        return run(decoding)

    monkeypatch.setattr(_Decoding, "run", seen)
    fill(paths, tiny_model)
    train_once(paths, tiny_model, {**CONFIG, "rollout": {"max_tokens": 8, "batch": 12}})
    assert max(widths) == 12
