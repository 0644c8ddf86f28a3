"""Hustings beside Hugging Face TRL: the same data, the same lengths, the same allocator, one after the other.

    python -m benchmarks.peer setup                    TRL's own environment (2 GB in the cache folder; once)
    python -m benchmarks.peer reward --model FOLDER    reward-model pairs a second, held-out accuracy
    python -m benchmarks.peer ppo --model FOLDER       PPO episodes a second, peak memory
    python -m benchmarks.peer learning --model FOLDER --votes FOLDER   true win rate after the same wall time
    python -m benchmarks.peer curve --model FOLDER --votes FOLDER      accuracy against the number of votes
    python -m benchmarks.peer report --model FOLDER [--out FILE]       the table of all runs on record

Each call runs the sides in turn (A B A B with --repeats 2) and adds to the record in the cache folder; `report` reads
it. `--side` runs one of them alone, for a machine that is not free for long.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks import given as asked_for
from benchmarks.peer import runs
from benchmarks.peer.curve import HEADS, curve
from benchmarks.peer.environment import Peer, default_folder
from benchmarks.peer.learning import learn
from benchmarks.peer.report import alone, report
from benchmarks.reward_curve import COUNTS
from deploy.setup.environment import SetupFailed
from train.files import write_text

LORA = {"rank": 16, "alpha": 32}
PAIRS = {"train_pairs": 64, "held_out_pairs": 48, "prompts": 16, "seed": 0}
REWARD = {"batch": 4, "micro": 2, "learning_rate": 3e-4, "schedule": "constant", "seed": 0, "evaluate": True}
PPO: dict[str, Any] = {
    "iterations": 1,
    "batch": 16,
    "minibatches": 4,
    "epochs": 1,
    "response_length": 32,
    "temperature": 1.0,
    "learning_rate": 1e-4,
    "kl": 0.05,
    "seed": 0,
    "save": None,
}
SIDES = {
    "reward": ("hustings", "hustings-mix", "trl"),
    "ppo": ("hustings", "hustings-same-roles", "trl"),
    "learning": ("hustings", "trl"),
    "curve": tuple(HEADS),
}


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("setup", "reward", "ppo", "learning", "curve", "report"))
    parser.add_argument("--model", type=asked_for.model_folder, help="Hugging Face folder of a Llama-like chat model")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="of the environment and the runs")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", action="append", help="only this one; may be given again")
    parser.add_argument("--answers", type=int, action="append", help="answers a prompt (ppo); default 1 and 4")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing on both sides (ppo)")
    parser.add_argument(
        "--votes", type=Path, help="cache of benchmarks.learning (learning), of benchmarks.reward_head (curve)"
    )
    parser.add_argument(
        "--utility", type=asked_for.taste, default="plain_words", help="the voters' hidden taste (learning)"
    )
    parser.add_argument("--decisive", type=int, default=128, help="votes that name a winner (learning)")
    parser.add_argument("--seed", type=int, default=6, help="of the voters (learning)")
    parser.add_argument("--seconds", type=float, help="TRL's time; default what our cycle took (learning)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of TRL's PPO (learning); 1e-3 is ours")
    parser.add_argument("--reward-rate", type=float, default=1e-4, help="of TRL's RewardTrainer (learning)")
    parser.add_argument(
        "--taste", action="append", type=asked_for.taste, help="only this one; may be given again (curve)"
    )
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="decisive votes of each taste at most (curve)")
    parser.add_argument("--out", type=asked_for.writable, help="where `report` writes its JSON")
    parser.add_argument(
        "--others",
        type=float,
        help="`report` leaves out runs beside which others took more than this share of its time",
    )
    given = parser.parse_args(arguments)
    if given.what != "setup" and given.model is None:
        parser.error("--model is needed")
    if given.what in {"learning", "curve"} and given.votes is None:
        parser.error("--votes is needed")
    if given.what == "curve" and not list(given.votes.glob("answers-*.json")):
        parser.error(
            f"--votes: {given.votes} holds no answers; run `benchmarks.reward_head sample --cache` on it first"
        )
    if unknown := set(given.side or ()) - set(sides := SIDES.get(given.what, ())):
        parser.error(f"--side {min(unknown)} has no {given.what}; there are {', '.join(sides) or 'none'}")
    if given.most < COUNTS[0]:
        parser.error(f"--most is at least {COUNTS[0]}")
    try:
        return act(Peer(given.cache), given)
    except (runs.RunFailed, SetupFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def act(peer: Peer, given: argparse.Namespace) -> int:
    """What was asked for; 1 when there is nothing to report.

    Raises:
        RunFailed: a side's process ended badly.
        SetupFailed: TRL's environment can't be made.
    """
    if given.what == "setup":
        peer.make()
        print(f"the peer's environment is in {given.cache}")
        return 0
    work = given.cache / "runs" / _key(given.model)
    if given.what == "report":
        kept = runs.kept(work)
        counted = kept if given.others is None else alone(kept, given.others)
        return report(counted, given.out, left_out=[row for row in kept if row not in counted])
    peer.make()
    if given.what == "curve":
        curve(peer, work, given)
        return 0
    for _ in range(given.repeats):
        measure(peer, work, given)
    return 0


def measure(peer: Peer, work: Path, given: argparse.Namespace) -> None:
    """Each side once."""
    if given.what == "learning":
        learn(peer, work, given)
        return
    for side in given.side or SIDES[given.what]:
        if given.what == "reward":
            reward(peer, work, given.model, side)
        else:
            for answers in given.answers or (1, 4):
                ppo(peer, work, given.model, side, answers, recompute=given.recompute)


def reward(peer: Peer, work: Path, model: Path, side: str) -> None:
    """One run of one side: train on the pairs, judge on the held-out ones, save for PPO."""
    made = work / f".reward-{side}"
    shutil.rmtree(made, ignore_errors=True)
    job = {**REWARD, **LORA, **_data(work, model), "model": str(model), "save": str(made)}
    if side == "trl":
        figures = runs.theirs(peer, "reward", job, work)
    else:
        figures = runs.ours("reward", {**job, "head": "mix" if side == "hustings-mix" else "last"}, work)
    shutil.rmtree(_reward_folder(work, side), ignore_errors=True)  # PPO begins with a whole one or with none
    made.rename(_reward_folder(work, side))
    runs.keep(work, "reward", side, {**figures, "pairs_per_s": round(figures["pairs"] / figures["wall_s"], 4)})


def ppo(peer: Peer, work: Path, model: Path, side: str, answers: int, *, recompute: bool = False) -> None:
    """One run of one side; the reward model comes from a run of `reward` (made now where there is none)."""
    same_roles = side == "hustings-same-roles"
    source = "trl" if side == "trl" else "hustings" if same_roles else "hustings-mix"
    if not _reward_folder(work, source).exists():
        reward(peer, work, model, source)
    prompts = _data(work, model)["prompts"][: PPO["batch"] // answers]
    job = {**PPO, **LORA, "model": str(model), "reward": str(_reward_folder(work, source)), "answers": answers}
    job["gradient_checkpointing"] = recompute
    if side == "trl":
        repeated = [prompt for prompt in prompts for _ in range(answers)]
        figures = runs.theirs(peer, "ppo", {**job, "prompts": repeated, "value": "lora"}, work)
    else:
        roles = {"head": "last", "critic": "lora"} if same_roles else {"head": "mix", "critic": "trunk"}
        figures = runs.ours("ppo", {**job, "prompts": prompts, **roles}, work)
    figures["episodes_per_s"] = round(figures["episodes"] / figures["wall_s"], 4)
    runs.keep(work, f"ppo-{answers}" + "-recompute" * recompute, side, figures)


def _key(model: Path) -> str:
    """Runs of one model and of one kind of work are kept together, and apart from all others."""
    text = json.dumps([str(model.absolute()), LORA, PAIRS, REWARD, PPO], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _reward_folder(work: Path, side: str) -> Path:
    return work / f"reward-{side}"


def _data(work: Path, model: Path) -> dict[str, list[dict[str, list[int]]]]:
    """Token ids for both sides, made once."""
    path = work / "data.json"
    if not path.exists():
        write_text(path, json.dumps(runs.ours("data", {**PAIRS, "model": str(model)}, work)))
    found: dict[str, list[dict[str, list[int]]]] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    raise SystemExit(main())
