"""`make bench`: every benchmark on the default model, or those that are named: `make bench ARGS="engine"`."""

from __future__ import annotations

import os
import subprocess
import sys

from deploy.config import cache_dir
from deploy.default_model import default_folder, ensure
from deploy.errors import ModelError
from deploy.launch import preload
from feedback.priority import SHORT_WAITS


def commands(model: str) -> dict[str, list[list[str]]]:
    """Each benchmark's command lines, by name. Sampling goes on until all is there: figures of a part would be kept."""
    features = str(cache_dir() / "bench" / "reward_head")
    head = ["benchmarks.reward_head"]
    arguments, whole = ["--model", model, "--cache", features], ["--seconds", "inf"]
    learnt = str(cache_dir() / "bench" / "learning")
    peer = ["benchmarks.peer"]
    return {
        "voting": [["benchmarks.voting"]],
        "releases": [["benchmarks.releases"], ["benchmarks.weighed_elections"]],
        "durability": [["benchmarks.durability", "--skip-missing"]],
        "engine": [["benchmarks.engine", model, "--swap"]],
        "serving-paired": [["benchmarks.serving", "paired", "--model", model]],
        "serving-rollouts": [["benchmarks.serving", "rollouts", "--model", model]],
        "serving-gateway": [["benchmarks.serving", "gateway"]],
        "serving-swaps": [["benchmarks.serving", "swaps"]],
        "serving-streams": [["benchmarks.serving", "streams"]],
        "votes": [["benchmarks.votes"]],
        "stream": [["benchmarks.stream"]],
        "feedback": [["benchmarks.feedback"]],
        "reward_head": [
            [*head, "sample", *arguments, *whole],
            [*head, "fit", *arguments],
            ["benchmarks.peer", "curve", "--model", model, "--votes", features],
            ["benchmarks.reward_curve", *arguments, "--out", features, *whole],
        ],
        "overoptimisation": [
            [*head, "sample", *arguments, *whole],
            [
                "benchmarks.overoptimisation",
                *arguments,
                "--out",
                f"{features}/overoptimisation.jsonl",
                "--draw",
                f"{features}/overoptimisation.svg",
            ],
        ],
        "acquisition": [
            ["benchmarks.acquisition", stage, *arguments[:3], f"{features}-four", *whole] for stage in ("sample", "run")
        ],
        "learning": [["benchmarks.learning", "run", "--model", model, "--cache", learnt]],
        "peer": [
            [*peer, "reward", "--model", model, "--repeats", "2"],
            [*peer, "ppo", "--model", model, "--repeats", "2"],
            [*peer, "learning", "--model", model, "--votes", learnt],
            [*peer, "report", "--model", model],
        ],
    }


def main(wanted: list[str]) -> int:
    """Run them; 1 when one failed."""
    model = str(default_folder())
    known = commands(model)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"bench: no benchmark {unknown[0]}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if any(model in command for name in wanted or known for command in known[name]):
        try:
            ensure()
        except ModelError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    failed = []
    for name in wanted or known:
        for command in known[name]:
            print(f"== {name}: python -m {' '.join(command)}", flush=True)
            environment = {**os.environ, **SHORT_WAITS, **preload(openmp=name == "engine")}
            if subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode:
                failed.append(name)
                break
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
