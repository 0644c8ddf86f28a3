"""Learning per minute: the same votes, the same wall time, and a noise-free verdict on prompts that nobody trained on.

    python -m benchmarks.peer learning --model FOLDER --votes FOLDER --utility plain_words

`--votes` is the cache of `benchmarks.learning`. Our cycle is that benchmark's own; its seconds, from the last vote to
the chosen policy, are what TRL's RewardTrainer and then its PPOTrainer get (training loops only: loading is free, and
an iteration that has begun is finished). TRL's adapter is then read as any other and asked the same held-out prompts.
A finished step is kept; a call that was cut off goes on after it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peer import runs
from benchmarks.peer.environment import Peer
from benchmarks.peer.runs import Figures

REWARD = {"batch": 8, "micro": 4, "learning_rate": 1e-4, "schedule": "linear", "evaluate": True}
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
    folder = work / f"learning-{given.utility}-{given.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if "hustings" in (given.side or ("hustings", "trl")):
        runs.keep(
            work, f"learning-{given.utility}", "hustings", _step(folder / "ours.json", lambda: _ours(folder, given))
        )
    if "trl" in (given.side or ("hustings", "trl")):
        seconds = given.seconds or json.loads((folder / "ours.json").read_text())["seconds"]["cycle"]
        figures = _theirs(peer, folder, given, float(seconds))
        runs.keep(work, f"learning-{given.utility}", "trl", figures)


def _ours(folder: Path, given: Any) -> Figures:
    out = folder / "learning.jsonl"
    command = [sys.executable, "-m", "benchmarks.learning", "run", "--model", str(given.model), "--cache"]
    command += [str(given.votes), "--utility", given.utility, "--seed", str(given.seed), "--out", str(out)]
    command += ["--decisive", str(given.decisive)]
    if subprocess.run(command, env=runs.our_environment(), check=False).returncode != 0:
        raise runs.RunFailed("our own cycle failed; its output stands above")
    found: Figures = json.loads(out.read_text().splitlines()[-1])
    return found


def _theirs(peer: Peer, folder: Path, given: Any, seconds: float) -> Figures:
    """Reward model, PPO for what is left of the time, verdict."""
    common = {"model": str(given.model), "seed": given.seed, "rank": 16, "alpha": 32}
    ask = {**common, "votes": str(given.votes), "utility": given.utility, "decisive": given.decisive}
    data = _step(folder / "votes.json", lambda: runs.ours("votes", ask, folder))
    name = f"trl-policy-{given.learning_rate:g}"
    saved = {"reward": folder / "trl-reward", "policy": folder / name}
    job = {**REWARD, **common, "train": data["train"], "held_out": data["held_out"], "save": str(saved["reward"])}
    reward = _step(folder / "trl-reward.json", lambda: runs.theirs(peer, "reward", job, folder))
    job = {**PPO, **common, "prompts": data["prompts"], "reward": str(saved["reward"]), "save": str(saved["policy"])}
    job |= {"seconds": max(seconds - reward["wall_s"], 1.0), "learning_rate": given.learning_rate}
    ppo = _step(folder / f"{name}.json", lambda: runs.theirs(peer, "ppo", job, folder))
    verdict = runs.ours("verdict", {**ask, "adapter": str(saved["policy"])}, folder)
    times = {"reward": reward["wall_s"], "ppo": ppo["wall_s"], "cycle": reward["wall_s"] + ppo["wall_s"]}
    more = {"reward_accuracy": reward["accuracy"], "episodes": ppo["episodes"], "learning_rate": given.learning_rate}
    return {**verdict, **more, "seconds": times, "log": ppo["log"], "cpu_s": reward["cpu_s"] + ppo["cpu_s"]}


def _step(path: Path, make: Any) -> Figures:
    """What `make` gives, made once."""
    if not path.exists():
        path.write_text(json.dumps(make()) + "\n")
    found: Figures = json.loads(path.read_text())
    return found
