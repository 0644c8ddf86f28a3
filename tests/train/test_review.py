"""Which pairs are worth asking about, and from the trainer's pool to serving's shelf."""

from __future__ import annotations

import json
import math
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from feedback.contracts import CompletionRecord, Message, PairShown, ReviewPool, SamplingRecord
from feedback.dataset import Dataset
from feedback.paths import DataPaths
from serve.reviews import ReviewShelf
from tests.train.test_cycle import CONFIG, fill, train_once
from tests.train.test_reward_ensemble import doubting_head
from tests.train.tiny_trainer import make_trainer
from train.config import TrainConfig
from train.cycle_state import CycleState, all_cycles
from train.errors import NotEnoughVotes, RolloutsUnavailable
from train.review import choose, draw, questions
from train.reviewing import Reviews
from train.reward.acquisition import chances, information, leads_of
from train.reward.config import ReviewConfig
from train.rollout import ServingRollouts


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_a_vote_tells_most_where_heads_disagree_and_each_is_sure() -> None:
    odds = math.log(9)  # nine to one
    leads = np.array([[odds, odds, 0.0, odds], [odds, -odds, 0.0, 0.0]])
    found = information(leads)
    assert found[0] == pytest.approx(0.0, abs=1e-9)  # both are as sure of the same
    assert found[1] == pytest.approx(math.log(2) - entropy(0.9))
    assert found[2] == pytest.approx(0.0, abs=1e-9)  # both say: even
    assert found[3] == pytest.approx(entropy(0.7) - (entropy(0.9) + math.log(2)) / 2)
    assert information(-leads) == pytest.approx(found)
    assert information(np.array([[1e4], [-1e4]]))[0] == pytest.approx(math.log(2))


def test_leads_are_the_heads_own_differences_in_logits() -> None:
    leads = leads_of(np.array([1.0, 0.0]), np.array([[0.5, 0.0], [-0.5, 0.0]]), 2.0, np.array([0, 1]), np.array([1, 0]))
    assert leads.tolist() == [[3.0, -3.0], [1.0, -1.0]]


def test_chances_prefer_what_tells_most_and_never_vanish() -> None:
    found = chances(np.array([0.1, 0.2, 0.0]), floor=0.3, sharpness=1.0)
    assert found == pytest.approx([0.1 + 0.7 / 3, 0.1 + 1.4 / 3, 0.1])
    assert chances(np.array([0.0, 0.0]), floor=0.1, sharpness=8.0).tolist() == [0.5, 0.5]
    keen = chances(np.array([0.1, 0.2]), floor=0.1, sharpness=8.0)
    assert keen[1] > 0.94
    assert keen.sum() == pytest.approx(1.0)


def test_the_probability_of_the_drawn_pair_is_kept() -> None:
    leads = np.array([[2.0, 0.0], [-2.0, 0.0]])
    config = ReviewConfig(floor=0.2, sharpness=8.0)
    drawn = [draw(leads, [(0, 1), (0, 2)], config, np.random.default_rng(seed)) for seed in range(400)]
    told = {(one.first, one.second): one.propensity for one in drawn}
    assert told == {(0, 1): pytest.approx(0.9), (0, 2): pytest.approx(0.1)}
    assert np.mean([(one.first, one.second) == (0, 1) for one in drawn]) == pytest.approx(0.9, abs=0.05)


def test_of_each_prompt_a_pair_is_chosen_and_the_most_telling_come_first() -> None:
    head, pooled = doubting_head(0.0)
    groups = [range(0, 4), range(4, 8), range(8, 9), range(12, 16)]
    chosen = choose(head, pooled, groups, ReviewConfig(prompts=4, pairs=2), np.random.default_rng(0))
    assert len(chosen) == 2
    assert chosen[0].information >= chosen[1].information > 0
    for one in chosen:
        assert one.first // 4 == one.second // 4
        assert one.first < one.second


def test_only_imported_prompts_are_shown_to_others_unless_an_operator_says_so() -> None:
    rows = [
        {"conversation_id": talk, "prompt": [{"role": "user", "content": str(n)}], "prompt_token_ids": ids}
        for n, (talk, ids) in enumerate(
            [("conv_1", (1, 2)), ("import_set_a", (3,)), ("import_set_b", (3,)), ("import_set_c", (4,) * 9)]
        )
    ]
    asked = questions(rows, ReviewConfig(prompts=9), longest=8, seed=0)
    assert asked == [((Message(role="user", content="1"),), (3,))]
    assert len(questions(rows, ReviewConfig(prompts=9, chats=True), longest=8, seed=0)) == 2
    assert len(questions(rows, ReviewConfig(prompts=1, chats=True), longest=8, seed=0)) == 1


def imported(paths: DataPaths, count: int) -> None:
    side = CompletionRecord(
        position="a",
        text="",
        finish_reason="stop",
        adapter="imported",
        sampling=SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=1),
    )
    Dataset(paths.dataset).append_pairs(
        [
            PairShown(
                pair_id=f"pair_import_{n}",
                conversation_id=f"import_set_{n}",
                voter=f"v_import_{n}",
                messages=(Message(role="user", content=f"what about the river {n}"),),
                completions=(side, side.model_copy(update={"position": "b"})),
                contenders="imported",
                propensity=1.0,
                base_model="imported",
            )
            for n in range(count)
        ]
    )


@pytest.mark.parametrize(
    ("trouble", "tried"), [(NotEnoughVotes("no prompts"), 1), (RolloutsUnavailable("serving is away"), 2)]
)
def test_what_the_next_try_cannot_mend_is_not_tried_again_for_the_same_reward_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, tried: int
) -> None:
    tries = []

    def prepare(*_: object) -> int:
        tries.append(1)
        raise trouble

    monkeypatch.setattr("train.review.prepare_pool", prepare)
    monkeypatch.setattr("train.reviewing.RETRY_S", 0.0)
    config = TrainConfig.model_validate({"review": {"prompts": 5}})
    served: Any = object
    reviews = Reviews(config, Dataset(tmp_path), nullcontext, lambda: None, served)
    for _ in range(2):
        cycle = CycleState(number=1, config={}, reward_model="reward-1")
        if reviews.due(cycle):
            reviews.prepare(cycle)
    assert len(tries) == tried
    assert reviews.due(CycleState(number=2, config={}, reward_model="reward-2"))


@pytest.mark.slow
def test_a_cycles_reward_model_fills_the_shelf_that_serving_takes_from(tmp_path: Path, tiny_model: Path) -> None:

    paths = DataPaths(tmp_path / "data")
    paths.create()
    fill(paths, tiny_model)
    imported(paths, 6)
    config = {**CONFIG, "ppo": {**CONFIG["ppo"], "iterations": 1}, "review": {"prompts": 5, "pairs": 3, "answers": 3}}
    assert train_once(paths, tiny_model, config) == 0
    (cycle,) = all_cycles(paths)
    rng = random.Random(1)
    asked = []

    def serving(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        some = [
            {"token_ids": [rng.randrange(20, 90) for _ in range(8)], "logprobs": [-1.0] * 8, "finish_reason": "length"}
            for _ in range(body["n"])
        ]
        return httpx.Response(200, json={"completions": [some for _ in body["prompts"]]})

    served = ServingRollouts(
        "http://serving",
        "secret",
        paths.rollout_adapters,
        lambda folder: None,
        run="review",
        client=httpx.Client(transport=httpx.MockTransport(serving)),
    )
    reviews = make_trainer(paths, tiny_model, config, serve_url="http://serving")._reviews
    reviews._served = lambda: served
    assert reviews.due(cycle)
    reviews.prepare(cycle)
    assert not reviews.due(cycle)  # once a reward model
    assert [(body["adapter"], len(body["prompts"]), body["n"]) for body in asked] == [(None, 5, 3)]
    pool = ReviewPool.model_validate_json(paths.review_pool.read_bytes())
    assert (len(pool.items), pool.reward_model, pool.adapter) == (3, cycle.reward_model, None)
    assert [item.information for item in pool.items] == sorted((i.information for i in pool.items), reverse=True)
    assert list(paths.review_pool.parent.glob("features-*")) == []
    shelf = ReviewShelf(paths.review_pool, lambda: pool.base_fingerprint, random.Random(1))
    pair = shelf.take("v_ann")
    assert pair is not None
    assert pair.messages[0].content.startswith("what about the river")
    assert all(len(side.token_ids) == 8 for side in pair.completions)
