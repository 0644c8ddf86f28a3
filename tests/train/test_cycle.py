"""A whole cycle on a tiny model: real dataset, reward model, PPO, publishing; killed and resumed; refused."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import (
    ADAPTER_TOPIC,
    AdapterManifest,
    AdapterPublished,
    CompletionRecord,
    Message,
    PairShown,
    SamplingRecord,
    VoteCast,
)
from feedback.dataset import Dataset
from feedback.paths import DataPaths
from feedback.voters import weigher
from tests.fakes.event_log import FakeEventLog
from tests.train.families import make
from tests.train.tiny_trainer import make_trainer
from train import cycle, finals, main, process, publish
from train.checkpoint import difference
from train.config import PpoConfig, TrainConfig
from train.cycle_state import all_cycles
from train.evaluate import Evaluation, evaluate

pytestmark = pytest.mark.slow

BEGAN = datetime(2026, 11, 1, 9, tzinfo=UTC)
"""Votes are a minute apart: their weights depend on how fast they were cast."""
CONFIG: dict[str, Any] = {
    "threads": 1,
    "lora": {"rank": 4, "alpha": 8},
    "ppo": {"iterations": 3, "episodes": 48, "minibatch": 8, "learning_rate": 1e-2, "kl_coefficient": 0.0},
    "governor": {"enabled": False},
    "rollout": {"max_tokens": 8},
    "schedule": {"eval_prompts": 48, "metrics_port": 0, "new_comparisons": 16, "poll_s": 0.05, "niceness": 0},
}


def fill(
    paths: DataPaths, model: Path, votes: int = 96, *, seed: int = 0, sense: bool = True, edits: bool = False
) -> None:
    """Random answers; voters prefer the one with more tokens below id 20 (or vote at random); some edit an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(seed)
    dataset = Dataset(paths.dataset)
    events = []
    for i in range(votes):
        text = f"the {rng.choice(['river', 'city', 'garden', 'weather'])} {i} {seed}"
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        sides = [[rng.randrange(5, len(tokenizer)) for _ in range(8)] for _ in range(2)]
        worth = [sum(token < 20 for token in side) for side in sides]
        choice = "tie" if worth[0] == worth[1] else "a" if worth[0] > worth[1] else "b"
        completions = tuple(
            CompletionRecord(
                position=position,
                text=tokenizer.decode(side),
                finish_reason="length",
                adapter=None,
                sampling=SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=8),
                token_ids=tuple(side),
                logprobs=(-1.0,) * 8,
            )
            for position, side in zip(("a", "b"), sides, strict=True)
        )
        pair = PairShown(
            pair_id=f"p{seed}-{i}",
            conversation_id=f"c{seed}-{i}",
            voter=f"v{i % 6}",
            messages=(Message(role="user", content=text),),
            completions=completions,
            contenders="self-play",
            propensity=1.0,
            base_model="tiny",
            prompt_token_ids=tuple(prompt["input_ids"]),
            shown_at=BEGAN + timedelta(minutes=i),
        )
        voted = choice if sense else rng.choice(["a", "b"])
        events.append(
            VoteCast(
                vote_id=f"v{seed}-{i}",
                pair=pair,
                voter=pair.voter,
                choice=voted,
                cast_at=BEGAN + timedelta(minutes=i, seconds=20),
                edited="yes, that is kind" if edits and i % 3 == 0 else None,
            )
        )
    dataset.append_pairs([event.pair for event in events])
    dataset.append_votes(events)


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    made = DataPaths(tmp_path / "data")
    made.create()
    return made


def train_once(paths: DataPaths, model: Path, config: dict[str, Any] = CONFIG) -> int:
    return main.run(TrainConfig.model_validate(config), FeedbackConfig(), paths, str(model), None, True, None, None)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_cycle_publishes_an_adapter_with_its_lineage_and_raises_the_reward(
    paths: DataPaths, tiny_model: Path
) -> None:
    fill(paths, tiny_model)
    assert train_once(paths, tiny_model) == 0
    folder = paths.adapters / "policy-000001"
    manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_text())
    assert manifest.snapshot == Dataset(paths.dataset, weigher(FeedbackConfig().voters)).build_snapshot().id
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert manifest.files["adapter_model.safetensors"] == digest(folder)
    assert manifest.metrics["policy_reward"] > manifest.metrics["base_reward"]
    assert len(manifest.probes) == 3
    assert manifest.probes[0].policy_logprobs != manifest.probes[0].base_logprobs
    asked = {tuple(pair.prompt_token_ids or ()) for pair in Dataset(paths.dataset).pairs()}
    assert not asked & {probe.prompt_token_ids for probe in manifest.probes}  # nothing that anybody asked
    cycle = paths.train / "cycles" / "000001"
    assert [json.loads(line)["iteration"] for line in (cycle / "metrics.jsonl").read_text().splitlines()] == [
        0,
        1,
        2,
        3,
    ]
    report = (cycle / "report.html").read_text()
    assert report.count("<svg") == 11
    assert "<script" not in report
    assert "http" not in report
    status = json.loads((paths.train / "status.json").read_text())
    assert status["cycles"][0]["adapter"] == "policy-000001"
    assert len(status["samples"]) == 8


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.mark.parametrize("step", ["snapshot", "reward", "iteration", "evaluate", "save", "published"])
def test_a_cycle_killed_anywhere_goes_on_and_ends_in_the_same_bits(
    step: str, paths: DataPaths, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import chronicle
    from train import cycle as cycles

    whole = DataPaths(tmp_path / "whole")
    whole.create()
    fill(whole, tiny_model)
    fill(paths, tiny_model)
    assert train_once(whole, tiny_model) == 0

    def dies(*_args: object, **_more: object) -> None:
        raise Killed

    def dies_after(real: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> None:
            real(*args, **more)
            raise Killed

        return wrapped

    where: dict[str, tuple[Any, str, Any]] = {
        "snapshot": (cycles, "read_features", dies),
        "reward": (cycles.MixHead, "save", dies_after(cycles.MixHead.save)),
        "iteration": (chronicle.Chronicle, "iteration", dies_after(chronicle.Chronicle.iteration)),
        "evaluate": (cycles, "evaluate", dies),
        "save": (publish, "write_text", dies),
        "published": (chronicle, "write_report", dies),
    }
    owner, name, replacement = where[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        with pytest.raises(Killed):
            train_once(paths, tiny_model)
    if step == "iteration":
        _as_an_earlier_version_wrote_it(paths.train / "cycles" / "000001")
    assert train_once(paths, tiny_model) == 0
    assert (paths.train / "cycles" / "000001" / "report.html").is_file()
    assert [p.name for p in paths.adapters.iterdir()] == ["policy-000001"]
    assert digest(paths.adapters / "policy-000001") == digest(whole.adapters / "policy-000001")
    assert len(all_cycles(paths)) == 1


def test_a_run_that_another_version_tells_of_otherwise_ends_its_cycle_with_one_line(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import chronicle

    fill(paths, tiny_model)

    def dies(*_args: object, **_more: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(chronicle.Chronicle, "iteration", dies)
        with pytest.raises(Killed):
            train_once(paths, tiny_model)
    for file in paths.train.glob("cycles/000001/ppo/*/state.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"prices": {**record["prices"], "strange": 1.0}}))
    assert train_once(paths, tiny_model) == 1
    (state,) = all_cycles(paths)
    assert state.outcome == "refused"
    assert "strange" in (state.reason or "")
    assert "another version" in (state.reason or "")


def _as_an_earlier_version_wrote_it(cycle: Path) -> None:
    """A setting came with an upgrade that neither the cycle's state nor its checkpoint knows."""
    for file in (cycle / "state.json", *cycle.glob("ppo/*/state.json")):
        record = json.loads(file.read_text())
        ppo = record.get("identity", record)["config"]["ppo"]
        assert ppo.pop("max_approx_kl") == PpoConfig().max_approx_kl
        file.write_text(json.dumps(record))


def test_a_run_with_other_settings_is_not_gone_on_with_and_the_setting_is_named() -> None:
    defaults = {"config": {"ppo": {"old": 1, "new": 2}}}
    now = {"base": "b", "config": {"ppo": {"old": 5, "new": 2}}}
    assert difference({"base": "b", "config": {"ppo": {"old": 5}}}, now, defaults) is None
    assert difference({"base": "c", "config": {"ppo": {"old": 5}}}, now, defaults) == "base"
    assert difference({"base": "b", "config": {"ppo": {"old": 1}}}, now, defaults) == "config.ppo.old"
    assert difference({"base": "b", "config": {"ppo": {"old": 5, "new": 3}}}, now, defaults) == "config.ppo.new"
    assert difference({"base": "b", "config": {"ppo": {"old": 5, "gone": 0}}}, now, defaults) == "config.ppo.gone"


def test_enough_edited_answers_make_a_warm_start_which_a_kill_does_not_change(
    paths: DataPaths, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.sft import WarmStarter

    warm = {**CONFIG, "sft": {"min_demonstrations": 20, "learning_rate": 3e-3}}
    whole = DataPaths(tmp_path / "whole")
    whole.create()
    for folder in (whole, paths):
        fill(folder, tiny_model, edits=True)
    assert train_once(whole, tiny_model, warm) == 0

    def dies(*_args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(WarmStarter, "_goes_on", dies)
        with pytest.raises(Killed):
            train_once(paths, tiny_model, warm)
    assert train_once(paths, tiny_model, warm) == 0
    assert digest(paths.adapters / "policy-000001") == digest(whole.adapters / "policy-000001")
    metrics = json.loads((whole.adapters / "policy-000001" / "manifest.json").read_text())["metrics"]
    assert metrics["sft_demonstrations"] == 32
    assert metrics["sft_loss_after"] < metrics["sft_loss_before"]
    assert all_cycles(whole)[0].warm_start == {k: v for k, v in metrics.items() if k.startswith("sft_")}
    assert "sft_loss_after" in (whole.train / "cycles" / "000001" / "report.html").read_text()


@pytest.mark.parametrize(
    ("votes", "sense", "line", "refused_by"),
    [(0, True, "no comparison", None), (10, True, "decisive votes", None), (96, False, "coin", "coin")],
)
def test_votes_that_teach_nothing_end_in_one_line_and_publish_nothing(
    votes: int, sense: bool, line: str, refused_by: str | None, paths: DataPaths, tiny_model: Path
) -> None:
    fill(paths, tiny_model, votes, seed=1, sense=sense)  # seed 0 draws one of the coins in ten that pass
    assert train_once(paths, tiny_model) == 1
    state = all_cycles(paths)[-1]
    assert state.outcome == "refused"
    assert line in (state.reason or "")
    assert state.refused_by == refused_by
    assert "\n" not in (state.reason or "")
    assert list(paths.adapters.iterdir()) == []


def test_a_refused_policy_leaves_a_report_with_what_kept_votes_say(paths: DataPaths, tiny_model: Path) -> None:
    fill(paths, tiny_model)
    governor = {"max_kl": 1e-9, "gold_votes": 48, "gold_share": 0.25}
    config = CONFIG | {"governor": governor, "ppo": CONFIG["ppo"] | {"iterations": 1, "episodes": 16}}
    assert train_once(paths, tiny_model, config) == 1
    (state,) = all_cycles(paths)
    assert state.outcome == "refused"
    assert "report.html" in (state.reason or "")
    report = (paths.train / "cycles" / "000001" / "report.html").read_text()
    assert "No policy was published" in report
    assert "most 1e-09" in report
    assert "proxy and gold" in report
    folder = paths.train / "cycles" / "000001"
    kept = json.loads((folder / "witness" / "reward.json").read_text())
    assert kept["model_id"] != json.loads((folder / "reward" / "reward.json").read_text())["model_id"]
    assert json.loads((paths.train / "status.json").read_text())["cycles"][0]["report"]


def test_finals_are_told_in_the_manifest_the_report_and_a_file(paths: DataPaths, tiny_model: Path) -> None:
    fill(paths, tiny_model)
    loose = {"max_kl": 1e9, "max_perplexity_ratio": 1e9, "min_distinct_ratio": 0, "min_topic_ratio": 0}
    assert train_once(paths, tiny_model, CONFIG | {"governor": {**loose, "final_answers": 24}}) == 0
    folder = paths.train / "cycles" / "000001"
    held = {final["iteration"]: final for final in json.loads((folder / "finals.json").read_text())}
    manifest = AdapterManifest.model_validate_json((paths.adapters / "policy-000001" / "manifest.json").read_text())
    published = held[int(manifest.metrics["iterations"])]
    assert published["breaches"] == []
    for name in ("score", "kl", "perplexity", "topic", "base_topic"):
        assert manifest.metrics[f"final_{name}"] == published[name]
    assert "Finals: the best policies once more" in (folder / "report.html").read_text()


def test_a_cycle_whose_every_policy_breaks_a_bound_on_fresh_answers_says_which(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finals, "judge_final", lambda *_: finals.Judgement(False, ("KL 99.0 nats an answer",)))
    fill(paths, tiny_model)
    loose = {"max_kl": 1e9, "max_perplexity_ratio": 1e9, "min_distinct_ratio": 0, "min_topic_ratio": 0}
    assert train_once(paths, tiny_model, CONFIG | {"governor": {**loose, "final_answers": 24}}) == 1
    (state,) = all_cycles(paths)
    assert state.outcome == "refused"
    assert "on fresh answers (iteration" in (state.reason or "")
    assert "KL 99.0 nats" in (state.reason or "")
    assert list(paths.adapters.iterdir()) == []
    assert (
        "kept the governor's bounds on fresh answers" in (paths.train / "cycles" / "000001" / "report.html").read_text()
    )


def test_a_policy_whose_fresh_answers_earn_no_more_than_the_bases_is_refused(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed_about(*args: Any, **options: Any) -> Evaluation:
        seen = evaluate(*args, **options)
        low, high = sorted((seen.before, seen.after), key=lambda side: side.reward)
        return Evaluation(before=high, after=low, win_rate=0.5)

    monkeypatch.setattr(cycle, "evaluate", changed_about)
    fill(paths, tiny_model)
    anything = {"max_kl": 1e9, "max_perplexity_ratio": 1e9, "min_distinct_ratio": 0, "min_topic_ratio": 0}
    assert train_once(paths, tiny_model, CONFIG | {"governor": anything}) == 1
    (state,) = all_cycles(paths)
    assert state.outcome == "refused"
    assert (state.reason or "").startswith("on fresh answers the policy earns")
    assert list(paths.adapters.iterdir()) == []
    assert "No policy was published" in (paths.train / "cycles" / "000001" / "report.html").read_text()


def test_a_second_trainer_on_the_same_folder_is_told_so(
    paths: DataPaths, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with process.only_trainer(paths):
        assert train_once(paths, tiny_model) == 1
    assert "another trainer works in" in capsys.readouterr().err


def wait_for_votes(paths: DataPaths, model: Path, seen: Callable[[dict[str, Any]], bool]) -> None:
    """A trainer that has seven tenths of the votes it needs watches until `seen` says so of its status."""
    decisive = Dataset(paths.dataset).count_new(None).decisive
    waiting = {**CONFIG["schedule"], "new_comparisons": round(decisive / 0.7), "poll_s": 0.1}
    stop = threading.Event()

    def observe(status: dict[str, Any]) -> None:
        if seen(status):
            stop.set()

    make_trainer(paths, model, {**CONFIG, "schedule": waiting}, stop, observe=observe).watch()


def test_a_base_that_cannot_be_trained_is_told_of_while_votes_still_come_in(
    paths: DataPaths, tiny_model: Path, tmp_path: Path
) -> None:
    fill(paths, tiny_model)
    other = make("Phi", {}, tmp_path / "phi", tiny_model)
    messages: list[str] = []

    def told(status: dict[str, Any]) -> bool:
        messages.append(f"{status['phase']}: {status['message']}")
        return "log-probs that differ" in messages[-1]

    wait_for_votes(paths, other, told)
    assert messages[-1].startswith("idle: ")
    assert "; waiting for votes: " in messages[-1]
    assert all_cycles(paths) == []


def test_the_votes_so_far_are_read_while_a_cycle_still_waits(paths: DataPaths, tiny_model: Path) -> None:
    from safetensors.numpy import load_file

    fill(paths, tiny_model)
    wait_for_votes(paths, tiny_model, lambda _status: any((paths.train / "reward").glob("features-*")))
    (cache,) = (paths.train / "reward").glob("features-*")
    assert all_cycles(paths) == []
    assert len(load_file(cache)["keys"]) == 2 * 96  # every answer is another


def test_watching_runs_a_cycle_when_enough_votes_have_come_and_announces_it_even_to_a_broker_that_forgot(
    paths: DataPaths, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FakeEventLog()
    monkeypatch.setattr(main, "_event_log", lambda _bootstrap, _feedback: broker)
    stop = threading.Event()
    seen: list[str] = []

    def observe(status: dict[str, Any]) -> None:
        seen.append(f"{status['phase']}: {status['message']}")
        if status["phase"] == "idle" and status["cycles"]:
            stop.set()

    fill(paths, tiny_model)
    make_trainer(paths, tiny_model, CONFIG, stop, observe=observe, bootstrap="fake").watch()
    assert "publish: reward" in " ".join(seen)
    records = [r for r in broker.consumer([ADAPTER_TOPIC], None).poll(1.0) if r.value is not None]
    assert [AdapterPublished.from_bytes(r.value).name for r in records if r.value] == ["policy-000001"]
    assert publish.announce_missing(broker, paths.adapters) == []
    assert publish.announce_missing(FakeEventLog(), paths.adapters) == ["policy-000001"]
