"""Our half of `learning`: the votes as token ids for TRL, and the true verdict on an adapter that it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import learning


def votes(job: dict[str, Any]) -> dict[str, Any]:
    """The votes of our cycle that named a winner (TRL's RewardTrainer knows no ties), and the prompts of PPO.

    Held out for TRL's own accuracy figure are other pairs of the same cache, without noise.
    """
    from feedback.simulator.utilities import utility

    bench, hidden = _bench(job), utility(job["utility"])
    ballots = learning.Ballots()
    pairs = learning.pairs_of_base(bench)
    learning.cast(bench, ballots, hidden, pairs, job["decisive"], job["seed"])
    decided = [_pair(winner, loser) for winner, loser, tied in ballots.rows if not tied]
    voted = {winner.prompt_ids for winner, _, _ in ballots.rows}
    fresh = []
    for at, prompt in enumerate(bench.train):
        ids, (a, b) = bench.ids(prompt), pairs(at)
        margin = hidden.margin(prompt.messages, bench.text(a), bench.text(b))
        if ids not in voted and abs(margin) > hidden.tie_margin:
            winner, loser = (a, b) if margin > 0 else (b, a)
            fresh.append({"prompt_ids": ids, "chosen_ids": winner, "rejected_ids": loser})
    return {"train": decided, "held_out": fresh[:64], "prompts": [bench.ids(prompt) for prompt in bench.train]}


def _pair(winner: Any, loser: Any) -> dict[str, Any]:
    return {"prompt_ids": winner.prompt_ids, "chosen_ids": winner.response_ids, "rejected_ids": loser.response_ids}


def verdict(job: dict[str, Any]) -> dict[str, Any]:
    """The hidden utility's verdict on an adapter's answers to the held-out prompts, as `benchmarks.learning` has it."""
    from feedback.simulator.utilities import true_win_rate, utility
    from train.base import POLICY
    from train.sampler import LocalRollouts

    bench, hidden = _bench(job), utility(job["utility"])
    bench.base.adapters.add(POLICY, 0)
    bench.base.adapters.load(POLICY, Path(job["adapter"]))
    old = bench.answers("held_out", bench.held_out, 1, seed=12)
    samples = LocalRollouts(bench.base, batch=64).generate(
        [bench.ids(prompt) for prompt in bench.held_out],
        1,
        max_tokens=learning.ANSWER_TOKENS,
        temperature=1.0,
        seed=77,
    )
    asked = [prompt.messages for prompt in bench.held_out]
    said = [[bench.text(row) for row in rows] for rows in (old, [sample.response_ids for sample in samples])]
    found = true_win_rate(hidden, asked, said[1], said[0])
    conduct, rows = learning._conduct(bench, [sample.response_ids for sample in samples])
    baseline, _ = learning._conduct(bench, old)
    return {
        "win_rate": found.mean,
        "interval": list(found.ci),
        "utility": learning._means(hidden, asked, *said),
        "topic": learning._means(utility("on_topic"), asked, *said),
        "kl": learning._kl(samples, rows),
        "perplexity": conduct.perplexity / baseline.perplexity,
        "distinct_within": conduct.distinct_within / baseline.distinct_within,
        "length": float(np.mean([len(sample.response_ids) for sample in samples])),
        "samples": [[prompt.text, *both] for prompt, *both in zip(bench.held_out[:6], *said, strict=False)],
    }


def _bench(job: dict[str, Any]) -> learning.Bench:
    return learning.Bench(Path(job["model"]), Path(job["votes"]))
