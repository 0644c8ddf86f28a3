"""Learning per minute: the same votes, the same wall time, and a noise-free verdict on prompts that nobody trained on.

    python -m benchmarks.peer learning --model FOLDER --votes FOLDER --utility plain_words

`--votes` is the cache of `benchmarks.learning`. Our cycle is that benchmark's own; its seconds, from the last vote to
the chosen policy, are what TRL's RewardTrainer and then its PPOTrainer get (training loops only: loading is free, and
an iteration that has begun is finished). TRL's adapter is then read as any other and asked the same held-out prompts.
A finished step is kept; a call that was cut off goes on after it. What is on record of this commit is not made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peer import runs
from benchmarks.peer.environment import Peer
from benchmarks.peer.runs import Figures
from train.files import write_text

REWARD = {"batch": 8, "micro": 4, "schedule": "linear", "evaluate": True}
PPO = {
    "iterations": None,
    "batch": 16,
    "minibatches": 2,
    "epochs": 1,
    "response_length": 48,
    "temperature": 1.0,
    "kl": 0.05,
    "value": "lora",
}


def learn(peer: Peer, work: Path, given: Any) -> None:
    """Our cycle, TRL's for the same time, and both verdicts on record."""
    folder = work / f"learning-{given.utility}-{given.decisive}-{given.seed}-{runs.commit()}"
    folder.mkdir(parents=True, exist_ok=True)
    sides = given.side or ("hustings", "trl")
    if "hustings" in sides:
        _once(work, given, "hustings", folder.name, lambda: _step(folder / "ours.json", lambda: _ours(folder, given)))
    if "trl" in sides:
        seconds = given.seconds or _our_seconds(folder / "ours.json")
        run = f"{folder.name}: {given.reward_rate:g}, {given.learning_rate:g}, {seconds:g} s"
        _once(work, given, "trl", run, lambda: _theirs(peer, folder, given, float(seconds)))


def _once(work: Path, given: Any, who: str, run: str, make: Callable[[], Figures]) -> None:
    """Make a run and keep it; a run that is on record already would count twice."""
    if any((row["who"], row.get("run")) == (who, run) for row in runs.kept(work)):
        print(f"{who} {run} is on record")
        return
    runs.keep(work, f"learning-{given.utility}", who, {"run": run, **make()})


def _our_seconds(path: Path) -> float:
    if not path.exists():
        raise runs.RunFailed(
            "TRL gets the time that our cycle takes, and none has run: leave --side out, or give --seconds"
        )
    return float(json.loads(path.read_text())["seconds"]["cycle"])


def _ours(folder: Path, given: Any) -> Figures:
    out = folder / "learning.jsonl"
    command = [sys.executable, "-m", "benchmarks.learning", "run", "--model", str(given.model), "--cache"]
    command += [str(given.votes), "--utility", given.utility, "--seed", str(given.seed), "--out", str(out)]
    command += ["--decisive", str(given.decisive)]
    if subprocess.run(command, env=runs.our_environment(), check=False).returncode != 0:
        raise runs.RunFailed("our own cycle failed; its output stands above")
    found: Figures = json.loads(out.read_text().splitlines()[-1])
    if "refused" in found:
        raise runs.RunFailed(f"our reward model of these votes was refused; take another --seed: {found['refused']}")
    return found


def _theirs(peer: Peer, folder: Path, given: Any, seconds: float) -> Figures:
    """Reward model, PPO for what is left of the time, verdict."""
    common = {"model": str(given.model), "seed": given.seed, "rank": 16, "alpha": 32}
    ask = {**common, "votes": str(given.votes), "utility": given.utility, "decisive": given.decisive}
    data = _step(folder / "votes.json", lambda: runs.ours("votes", ask, folder))
    first = f"trl-reward-{given.reward_rate:g}"
    name = f"trl-policy-{given.reward_rate:g}-{given.learning_rate:g}-{seconds:g}"
    saved = {"reward": folder / first, "policy": folder / name}
    job = {**REWARD, **common, "train": data["train"], "held_out": data["held_out"], "save": str(saved["reward"])}
    job |= {"learning_rate": given.reward_rate}
    reward = _step(folder / f"{first}.json", lambda: runs.theirs(peer, "reward", job, folder))
    job = {**PPO, **common, "prompts": data["prompts"], "reward": str(saved["reward"]), "save": str(saved["policy"])}
    job |= {"seconds": max(seconds - reward["wall_s"], 1.0), "learning_rate": given.learning_rate}
    ppo = _step(folder / f"{name}.json", lambda: runs.theirs(peer, "ppo", job, folder))
    verdict = runs.ours("verdict", {**ask, "adapter": str(saved["policy"])}, folder)
    times = {"reward": reward["wall_s"], "ppo": ppo["wall_s"], "cycle": reward["wall_s"] + ppo["wall_s"]}
    rates = {"learning_rate": given.learning_rate, "reward_rate": given.reward_rate}
    more = {"reward_accuracy": reward["accuracy"], "episodes": ppo["episodes"], **rates}
    return {**verdict, **more, "seconds": times, "log": ppo["log"], "cpu_s": reward["cpu_s"] + ppo["cpu_s"]}


def _step(path: Path, make: Callable[[], Figures]) -> Figures:
    """What `make` gives, made once."""
    if not path.exists():
        write_text(path, json.dumps(make()) + "\n")
    found: Figures = json.loads(path.read_text())
    return found
