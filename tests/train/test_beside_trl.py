"""Our losses against TRL's on the same tensors: what TRL's own training loop held, and what ours makes of it.

A test for development: it wants TRL's environment (`python -m benchmarks.peer setup`; HUSTINGS_PEER names its folder).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peer.environment import VARIABLE, Peer, default_folder
from benchmarks.peer.runs import theirs
from train import maths
from train.reward.losses import pairwise_loss

CLIP, VALUE_CLIP = 0.02, 0.05
FIRST_ROUND = 3
"""Its last step: later on the policy ends hardly any answer."""
PEER = Peer(default_folder())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PEER.ready(),
        reason=f"TRL's environment is not there: python -m benchmarks.peer setup (or set {VARIABLE} to its folder)",
    ),
]


@pytest.fixture(scope="module")
def seen(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """TRL's variables before each backward pass of two iterations: 2 epochs of 2 minibatches."""
    job = {
        "model": str(tiny_model),
        "prompts": [[1, 20, 30 + at, *range(40, 41 + at % 3)] for at in range(8)],
        "iterations": 2,  # the first one's policy is still the reference
        "batch": 8,
        "minibatches": 2,
        "epochs": 2,
        "response_length": 16,
        "temperature": 0.8,
        "learning_rate": 1e-2,
        "kl": 0.05,
        "kl_estimators": ["k1", "k3"],
        "clip": CLIP,
        "value_clip": VALUE_CLIP,
        "value": "lora",
        "seed": 3,
        "rank": 4,
        "alpha": 8,
    }
    found = theirs(PEER, "losses", job, tmp_path_factory.mktemp("trl"))
    return {name: [_tensors(snapshot) for snapshot in snapshots] for name, snapshots in found.items()}


def _tensors(snapshot: dict[str, Any]) -> dict[str, Any]:
    tensors = {name: torch.tensor(value) for name, value in snapshot.items()}
    tensors["real"], tensors["with_end"] = ~tensors["padding_mask"], ~tensors["padding_mask_p1"]
    return tensors


def test_the_answers_end_at_different_places_and_both_clips_are_at_work(seen: dict[str, Any]) -> None:
    last = seen["k1"][FIRST_ROUND]
    assert len(set(last["real"].sum(1).tolist())) > 2
    rows = last["rows"]
    ratio = torch.exp(last["new_logprobs"] - last["mb_logprobs"])[last["real"][rows]]
    assert bool((ratio > 1 + CLIP).any())
    assert bool((ratio < 1 - CLIP).any())
    moved = (last["vpred"] - last["mb_values"])[last["with_end"][rows]]
    assert bool((moved.abs() > VALUE_CLIP).any())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators(seen: dict[str, Any], estimator: maths.KlEstimator) -> None:
    held = seen[estimator][-1]
    mine = maths.kl(held["logprobs"], held["ref_logprobs"], estimator)
    assert float(held["kl"].abs().max()) > 0.01
    torch.testing.assert_close(mine[held["real"]], held["kl"][held["real"]], rtol=1e-5, atol=1e-7)


def test_score_and_kl_become_the_same_rewards_where_an_answer_was_cut_off(seen: dict[str, Any]) -> None:
    held = seen["k1"][FIRST_ROUND]
    mine = maths.kl_shaped_rewards(maths.at_last_token(held["scores"], held["real"]), held["kl"], 0.05, held["real"])
    cut = held["real"].all(1)
    torch.testing.assert_close(mine[cut], held["rewards"][cut], rtol=1e-5, atol=1e-6)


def test_trl_puts_the_score_of_an_ended_answer_one_step_past_its_end(seen: dict[str, Any]) -> None:
    """Where we differ on purpose: our episode ends with the end-of-turn token, TRL's a step later."""
    held = seen["k1"][FIRST_ROUND]
    lengths = held["real"].sum(1)
    ended = (lengths < held["real"].shape[1]).nonzero()[:, 0]
    assert len(ended) > 0
    theirs_at = held["rewards"][ended, lengths[ended]]
    torch.testing.assert_close(theirs_at, held["scores"][ended], rtol=1e-5, atol=1e-6)
    mine = maths.at_last_token(held["scores"], held["real"])
    torch.testing.assert_close(mine[ended, lengths[ended] - 1], held["scores"][ended])


def test_generalised_advantages(seen: dict[str, Any]) -> None:
    held = seen["k1"][FIRST_ROUND]
    mine = maths.gae(held["rewards"], held["values"], held["with_end"], gamma=1.0, lam=0.95)
    torch.testing.assert_close(mine.returns, held["returns"], rtol=1e-4, atol=1e-5)


def test_whitening_but_for_bessels_correction(seen: dict[str, Any]) -> None:
    held = seen["k1"][FIRST_ROUND]
    raw, mask = held["returns"] - held["values"], held["real"]
    count = int(mask.sum())
    mine = maths.masked_whiten(raw, mask) * math.sqrt((count - 1) / count)
    torch.testing.assert_close(mine, held["advantages"], rtol=1e-4, atol=1e-5)


def test_policy_loss_at_every_step(seen: dict[str, Any]) -> None:
    for held in seen["k1"]:
        mine = maths.policy_loss(
            held["new_logprobs"], held["mb_logprobs"], held["mb_advantage"], held["real"][held["rows"]], clip=CLIP
        )
        torch.testing.assert_close(mine.loss, held["pg_loss"], rtol=1e-5, atol=1e-6)


def test_value_loss_at_every_step(seen: dict[str, Any]) -> None:
    for held in seen["k1"]:
        mask = held["with_end"][held["rows"]]
        mine = maths.value_loss(held["vpred"], held["mb_values"], held["mb_return"], mask, VALUE_CLIP)
        torch.testing.assert_close(mine.loss, held["vf_loss"], rtol=1e-5, atol=1e-6)


def test_the_reward_models_loss(tmp_path: Path) -> None:
    job = {"chosen": [2.0, -0.5, 0.1, 30.0], "rejected": [1.0, 0.5, 0.1, -40.0], "margin": [0.0, 0.3, 1.0, 2.0]}
    found = theirs(PEER, "reward_loss", job, tmp_path)
    chosen, rejected, margin = (torch.tensor(job[name]) for name in ("chosen", "rejected", "margin"))
    assert float(pairwise_loss(chosen, rejected)) == pytest.approx(found["plain"], rel=1e-6)
    assert float(pairwise_loss(chosen, rejected, margin)) == pytest.approx(found["margin"], rel=1e-6)
