"""The training benchmarks told something wrong, cut off, or run again: one line, nothing doubled, nothing mixed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import given, overoptimisation, reward_head
from benchmarks import learning as cycles
from benchmarks.peer import __main__ as peer
from benchmarks.peer import learning, ours, runs
from benchmarks.peer.environment import Peer
from benchmarks.peer.report import report
from deploy.errors import ModelError
from deploy.setup.environment import SetupFailed
from train.config import TrainConfig
from train.errors import RewardRefused


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (given.model_folder, "nowhere", "holds no config.json"),
        (given.writable, "nowhere/out.json", "a folder that exists"),
        (given.writable, ".", "a folder that exists"),
        (given.taste, "plain_word", "plain_words"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_work(read: Callable[[str], Any], text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        read(text)


def test_settings_are_those_of_the_trainer() -> None:
    items = ["train.ppo.lam=0.9", "governor.enabled=false", "ppo.iterations=3"]
    assert given.settings(items) == {"ppo": {"lam": 0.9, "iterations": 3}, "governor": {"enabled": False}}


@pytest.mark.parametrize("item", ["ppo.lam", "ppo.lam=x", "lam=0.9", "ppo.lamb=0.9", "ppo.lam=-1"])
def test_settings_that_do_not_exist_or_fit_are_one_line(item: str) -> None:
    with pytest.raises(SystemExit, match=f"--set {item}: .*train.ppo.lam") as raised:
        given.settings([item])
    assert "\n" not in str(raised.value)


def test_a_cache_is_of_the_base_that_first_wrote_to_it(tmp_path: Path) -> None:
    given.same_base(tmp_path / "cache", "a" * 64)
    given.same_base(tmp_path / "cache", "a" * 64)
    with pytest.raises(SystemExit, match="another model"):
        given.same_base(tmp_path / "cache", "b" * 64)


@pytest.mark.parametrize("split", ["train", "held_out", None])
def test_a_cache_without_answers_of_both_kinds_says_what_to_run(tmp_path: Path, split: str | None) -> None:
    rows = [{"split": split, "group": 0, "prompt_ids": [1], "response_ids": [at]} for at in (2, 3)]
    if split:
        (tmp_path / "answers-0000.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit, match="run this benchmark's `sample`"):
        reward_head.load_answers(tmp_path)


def test_runs_of_overoptimisation_that_are_on_record_are_not_made_again(tmp_path: Path) -> None:
    assert overoptimisation.recorded(tmp_path / "none") == []
    runs_made = [{"utility": "mix", "decisive": 64, "seed": 0, "kind": "free"}]
    kinds = ["free", "governed"]
    assert overoptimisation.missing(runs_made, "mix", 64, 0, kinds) == ["governed"]
    for other in (("plain_words", 64, 0), ("mix", 640, 0), ("mix", 64, 1)):
        assert overoptimisation.missing(runs_made, *other, kinds) == kinds


def test_make_bench_looks_at_the_names_before_it_fetches_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away() -> Path:
        raise ModelError("no network")

    monkeypatch.setattr(bench, "ensure", away)
    assert bench.main(["peers"]) == 2
    assert "no benchmark peers; there are voting," in capsys.readouterr().err
    assert bench.main(["learning"]) == 1
    assert capsys.readouterr().err == "bench: no network\n"
    done: list[list[str]] = []
    monkeypatch.setattr(
        bench.subprocess, "run", lambda command, **_: done.append(command) or argparse.Namespace(returncode=0)
    )
    assert bench.main(["voting"]) == 0  # needs no model
    assert [command[-1] for command in done] == ["benchmarks.voting"]


def test_make_bench_measures_nothing_on_half_a_sample() -> None:
    commands = [command for some in bench.commands("MODEL").values() for command in some]
    timed = [command for command in commands if "sample" in command or command[0] == "benchmarks.reward_curve"]
    assert len(timed) == 4
    assert all(command[-2:] == ["--seconds", "inf"] for command in timed)


def test_votes_that_are_refused_end_a_campaign_with_the_reason_as_its_result() -> None:
    def campaign() -> Iterator[Any]:
        yield "the first cycle"
        raise RewardRefused("no better than a coin", test="coin")

    assert list(cycles.tried(campaign())) == ["the first cycle", "no better than a coin"]


def test_trls_accuracy_curve_is_of_its_own_heads(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "answers-0000.json").write_text("[]")
    with pytest.raises(SystemExit):
        peer.main(["curve", "--model", model, "--votes", str(tmp_path), "--side", "hustings-mix"])
    assert "hustings-mix has no curve; there are hustings, trl" in capsys.readouterr().err


def test_the_peer_says_that_our_votes_were_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cycle(command: list[str], **_: Any) -> argparse.Namespace:
        Path(command[command.index("--out") + 1]).write_text('{"refused": "no better than a coin"}\n')
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(learning.subprocess, "run", cycle)
    with pytest.raises(runs.RunFailed, match="another --seed: no better than a coin"):
        learning._ours(tmp_path, asked(tmp_path))


def asked(folder: Path, **changes: Any) -> argparse.Namespace:
    told = {"model": "MODEL", "votes": "VOTES", "utility": "mix", "decisive": 128, "seed": 6, "seconds": None}
    told |= {"learning_rate": 1e-3, "reward_rate": 1e-4, "side": None}
    return argparse.Namespace(**told | changes)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both sides' runs by a stand-in; the list grows by each."""
    made: list[str] = []

    def ours(_folder: Path, given: argparse.Namespace) -> dict[str, Any]:
        made.append(f"ours {given.decisive}")
        return {"seconds": {"cycle": 150.0}}

    def part(what: str, *_: Any) -> dict[str, Any]:
        made.append(what)
        return {"train": [], "held_out": [], "prompts": []} if what == "votes" else {"win_rate": 0.5}

    def theirs(_peer: Peer, what: str, job: dict[str, Any], _work: Path) -> dict[str, Any]:
        made.append(f"{what} {job['learning_rate']:g} {job.get('seconds', 0):g}")
        return {"wall_s": 50.0, "accuracy": 0.5, "cpu_s": 1.0, "episodes": 16, "log": []}

    monkeypatch.setattr(learning, "_ours", ours)
    monkeypatch.setattr(learning.runs, "ours", part)
    monkeypatch.setattr(learning.runs, "theirs", theirs)
    return made


def test_a_comparison_that_is_on_record_is_not_counted_twice_and_another_one_is_made(
    sides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        learning.learn(Peer(tmp_path), tmp_path, asked(tmp_path))
    assert sides == ["ours 128", "votes", "reward 0.0001 0", "ppo 0.001 100", "verdict"]
    assert [row["who"] for row in runs.kept(tmp_path)] == ["hustings", "trl"]
    learning.learn(Peer(tmp_path), tmp_path, asked(tmp_path, side=["trl"], reward_rate=1e-3))
    assert sides[5:] == ["reward 0.001 0", "ppo 0.001 100", "verdict"]
    learning.learn(Peer(tmp_path), tmp_path, asked(tmp_path, decisive=256))
    assert sides[8:10] == ["ours 256", "votes"]
    monkeypatch.setattr(learning.runs, "commit", lambda: "abc1234")
    learning.learn(Peer(tmp_path), tmp_path, asked(tmp_path, side=["hustings"]))
    assert sides[-1] == "ours 128"
    assert runs.kept(tmp_path)[-1]["commit"] == "abc1234"


def test_trl_without_our_time_says_so(sides: list[str], tmp_path: Path) -> None:
    with pytest.raises(runs.RunFailed, match="--seconds"):
        learning.learn(Peer(tmp_path), tmp_path, asked(tmp_path, side=["trl"]))
    learning.learn(Peer(tmp_path), tmp_path, asked(tmp_path, side=["trl"], seconds=90.0))
    assert "ppo 0.001 40" in sides


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["learning"], "--votes is needed"),
        (["ppo", "--side", "trll"], "trll has no ppo; there are hustings, hustings-same-roles, trl"),
        (["curve", "--votes", "nowhere"], "nowhere holds no answers"),
        (["report", "--side", "trl"], "trl has no report"),
    ],
)
def test_the_peer_is_not_installed_for_a_call_that_cannot_go_on(
    model: str,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Peer, "make", lambda _self: pytest.fail("it was installed"))
    with pytest.raises(SystemExit):
        peer.main([*arguments, "--model", model])
    assert said in capsys.readouterr().err


def test_a_peer_that_cannot_be_installed_is_one_line(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(_self: Peer) -> None:
        raise SetupFailed("pip could not reach its index")

    monkeypatch.setattr(Peer, "make", make)
    assert peer.main(["reward", "--model", model, "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "bench: pip could not reach its index\n"


def test_ppo_never_begins_with_half_a_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = True

    def theirs(_peer: Peer, _what: str, job: dict[str, Any], _work: Path) -> dict[str, Any]:
        Path(job["save"]).mkdir()
        if fails:
            raise runs.RunFailed("killed while saving")
        (Path(job["save"]) / "model.safetensors").write_text("whole")
        return {"pairs": 64, "wall_s": 32.0}

    monkeypatch.setattr(runs, "theirs", theirs)
    monkeypatch.setattr(peer, "_data", lambda *_: {})
    with pytest.raises(runs.RunFailed):
        peer.reward(Peer(tmp_path), tmp_path, tmp_path, "trl")
    assert not (tmp_path / "reward-trl").exists()
    fails = False
    peer.reward(Peer(tmp_path), tmp_path, tmp_path, "trl")
    assert (tmp_path / "reward-trl/model.safetensors").read_text() == "whole"
    assert runs.kept(tmp_path)[-1]["pairs_per_s"] == 2.0


@pytest.mark.parametrize(("recompute", "name"), [(False, "ppo-4"), (True, "ppo-4-recompute")])
def test_gradient_checkpointing_is_on_for_both_sides_or_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, recompute: bool, name: str
) -> None:
    asked: list[bool] = []

    def ran(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job["gradient_checkpointing"])
        return {"episodes": 16, "wall_s": 4.0}

    monkeypatch.setattr(runs, "theirs", lambda _peer, _what, job, _work: ran(job))
    monkeypatch.setattr(runs, "ours", lambda _what, job, _work: ran(job))
    monkeypatch.setattr(peer, "_data", lambda *_: {"prompts": [[1]] * 16})
    for side in ("hustings", "trl"):
        (tmp_path / f"reward-{'trl' if side == 'trl' else 'hustings-mix'}").mkdir()
        peer.ppo(Peer(tmp_path), tmp_path, tmp_path, side, 4, recompute=recompute)
    assert asked == [recompute, recompute]
    assert [(row["bench"], row["who"]) for row in runs.kept(tmp_path)] == [(name, "hustings"), (name, "trl")]
    settings = ours._settings(
        {**peer.PPO, **peer.LORA, "head": "mix", "critic": "trunk", "answers": 4}
        | {"gradient_checkpointing": recompute}
    )
    assert TrainConfig.model_validate(settings).ppo.gradient_checkpointing is recompute


def test_runs_that_do_not_count_stay_in_the_baseline_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"bench": "ppo-1", "episodes_per_s": 1.0, "peak_gib": 1.0, "cpu_s": 1.0, "commit": "abc1234"}
    counted = [{**row, "who": who} for who in ("hustings", "trl")]
    busy = {**row, "who": "trl", "episodes_per_s": 0.5, "others_cpu_s": 0.9}
    assert report(counted, tmp_path / "out.json", left_out=[busy]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (len(found["runs"]), found["left_out"]) == (2, [busy])
    told = capsys.readouterr().out
    assert "left out: 1 of trl" in told
    assert "commits: abc1234" in told
