"""The textbook head on the tiny model."""

from __future__ import annotations

import dataclasses
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.base import Base
from train.errors import NotEnoughVotes, RewardRefused
from train.reward import last, refresh
from train.reward.config import RewardConfig
from train.reward.judge import Judgement
from train.reward.last import LastHead, normalised, score_all, scores_of, train_last
from train.reward.refresh import refresh_last
from train.reward.votes import Answer, Votes


def planted_votes(n: int, *, seed: int = 0) -> Votes:
    """The better answer ends with token 7, the other with token 9."""
    rng = random.Random(seed)
    answers = [
        Answer((3, 4, 5 + i % 3), (*(rng.randrange(10, 40) for _ in range(3)), (7, 9)[side]))
        for i in range(n)
        for side in range(2)
    ]
    return Votes(
        answers=tuple(answers),
        first=np.arange(0, 2 * n, 2),
        second=np.arange(1, 2 * n, 2),
        tied=np.zeros(n, dtype=bool),
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.arange(n),
        voter=np.arange(n),
        reasons=((),) * n,
    )


def test_a_saved_head_is_on_the_disk(base: Base, tmp_path: Path, synced: list[str]) -> None:
    train_last(base, planted_votes(8), np.arange(8), RewardConfig(head="last"), seed=0).save(tmp_path)
    assert synced[0] == "reward.safetensors"
    assert synced[1].startswith(".reward.json")  # before it takes its name


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_what_the_last_token_tells_and_scores_unseen_answers(base: Base, lora: bool, tmp_path: Path) -> None:
    votes = planted_votes(48)
    config = RewardConfig(head="last", last_lora=lora, learning_rate=0.02, epochs=3)
    head = train_last(base, votes, np.arange(48), config, seed=0)
    unseen = planted_votes(24, seed=5)
    scores = score_all(head, unseen.answers)
    assert np.mean(scores[unseen.first] > scores[unseen.second]) > 0.9
    head = normalised(head, score_all(head, votes.answers), {})
    head.save(tmp_path)
    again = LastHead.load(tmp_path, base)
    ids = torch.tensor([[3, 4, 5, 11, 7, 0], [0, 3, 4, 12, 13, 9]])
    prompt = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]).bool()
    response = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]).bool()
    rewards = again.token_rewards({}, ids, prompt, response)
    assert rewards.count_nonzero(dim=1).tolist() == [1, 1]
    assert rewards[0, 4] != 0
    assert rewards[1, 5] != 0
    raw = score_all(head, [Answer((3, 4, 5), (11, 7)), Answer((3, 4), (12, 13, 9))])
    np.testing.assert_allclose(rewards.sum(dim=1).numpy(), (raw - head.shift) / head.scale, rtol=1e-4)
    assert again.model_id == head.model_id


def test_whoever_watches_hears_of_each_step_and_may_judge_the_head_as_it_then_is(base: Base) -> None:
    votes = planted_votes(20)
    heard: list[tuple[int, np.ndarray]] = []

    def watch(seen: int, weight: torch.Tensor) -> None:
        heard.append((seen, scores_of(base, votes.answers, weight, lora=True)))

    config = RewardConfig(head="last", learning_rate=0.02, batch_pairs=8)
    head = train_last(base, votes, np.arange(20), config, seed=0, watch=watch)
    assert heard[-1][0] == 20
    assert [seen for seen, _ in heard] == sorted({seen for seen, _ in heard})
    np.testing.assert_array_equal(heard[-1][1], score_all(head, votes.answers))
    assert np.abs(heard[0][1] - heard[-1][1]).max() > 0.01


def test_votes_of_which_nothing_is_left_to_learn_from_are_too_few(base: Base) -> None:
    votes = dataclasses.replace(planted_votes(20), conversation=np.zeros(20, dtype=np.int64))
    with pytest.raises(NotEnoughVotes, match="vote in more conversations"):
        refresh_last(base, votes, RewardConfig(head="last"), 0)


def test_a_batch_counts_by_the_weights_of_its_votes(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone in its batch a vote would count whole, whatever its weight. Plain descent shows what AdamW hides."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, **_: torch.optim.SGD(weights, lr=lr))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    answers = [Answer((3, 4, 50 + at // 2), answer.response_ids) for at, answer in enumerate(planted_votes(8).answers)]
    votes = dataclasses.replace(planted_votes(8), answers=tuple(answers))
    config = RewardConfig(head="last", last_lora=False, learning_rate=1e-5, batch_pairs=1)

    def steps(weight: list[float]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        weighed = dataclasses.replace(votes, weight=np.array(weight))
        train_last(base, weighed, np.arange(8), config, seed=0, watch=lambda _, now: seen.append(now.double().clone()))
        return torch.stack([after - before for before, after in pairwise(seen)]).norm(dim=1)

    even = steps([1.0] * 8)
    shares = (steps([0.5, 1.5] * 4) / even).tolist()  # of the mean weight, 1
    assert {round(share, 1) for share in shares} == {0.5, 1.5}
    torch.testing.assert_close(steps([0.1] * 8), even, rtol=0.01, atol=0.0)
    assert int(steps([0.0] * 7 + [1.0]).count_nonzero()) <= 1  # none where the vote that counts came first


def moved(base: Base, votes: Votes, lora: bool) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """The head's weight and the adapter's after each of three plain steps of rate 1e-3 on the whole batch."""
    heads: list[torch.Tensor] = []
    adapters: list[list[torch.Tensor]] = []

    def watch(_seen: int, weight: torch.Tensor) -> None:
        heads.append(weight.clone())
        adapters.append([w.detach().clone() for w in base.adapters.parameters(last.ADAPTER)] if lora else [])

    config = RewardConfig(head="last", last_lora=lora, learning_rate=1e-3, batch_pairs=8, epochs=3)
    train_last(base, votes, np.arange(8), config, seed=0, watch=watch)
    return heads, adapters


@pytest.mark.parametrize(("margin", "clipped"), [(50.0, True), (-3.0, False)])
def test_a_steep_gradient_is_cut_to_norm_one_and_a_gentle_one_is_left(
    base: Base, monkeypatch: pytest.MonkeyPatch, margin: float, clipped: bool
) -> None:
    """A margin out of reach leaves the pull of every vote whole (norm 4.9 here), one that is passed a tenth of it."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, **_: torch.optim.SGD(weights, lr=lr))
    votes = dataclasses.replace(planted_votes(8), margin=np.full(8, margin))
    with torch.no_grad():
        states = last.raw_scores(base, votes.answers, torch.eye(base.width), lora=False).double()
    difference = states[0::2] - states[1::2]
    heads, _ = moved(base, votes, lora=False)
    for before, after in pairwise(weight.double() for weight in heads):
        pull = torch.sigmoid(margin - difference @ before)  # of -log sigmoid(lead - margin)
        step = (pull[:, None] * difference).mean(dim=0)
        assert (float(step.norm()) > 1) == clipped
        expected = 1e-3 * (step / step.norm() if clipped else step)
        torch.testing.assert_close(after - before, expected, rtol=1e-3, atol=1e-7)


def test_head_and_adapter_are_cut_together(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, **_: torch.optim.SGD(weights, lr=lr))
    heads, adapters = moved(base, dataclasses.replace(planted_votes(8), margin=np.full(8, 50.0)), lora=True)
    for at in (0, 1):
        head = float((heads[at + 1] - heads[at]).norm())
        adapter = math.hypot(*(float((b - a).norm()) for a, b in zip(adapters[at], adapters[at + 1], strict=True)))
        assert math.hypot(head, adapter) == pytest.approx(1e-3, rel=1e-3)
        assert min(head, adapter) > 1e-4  # both learn


def test_the_weight_of_a_tie_is_that_of_davidsons_share_of_ties(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    told: set[float] = set()
    loss = last.ties_loss

    def listen(*given: Any) -> torch.Tensor:
        told.add(round(given[3], 6))
        return loss(*given)

    monkeypatch.setattr(last, "ties_loss", listen)
    votes = dataclasses.replace(planted_votes(10), tied=np.arange(10) < 4)
    train_last(base, votes, np.arange(10), RewardConfig(head="last"), seed=0)
    assert told == {round(4 / 3, 6)}  # equal answers tie in nu / (2 + nu) = 0.4


def test_a_margin_is_taken_off_the_winners_lead(base: Base) -> None:
    votes = dataclasses.replace(planted_votes(2), margin=np.array([0.5, 2.0]))
    base.adapters.add(last.ADAPTER, 0)
    weight = torch.linspace(-1, 1, base.width)
    first, second = np.split(scores_of(base, votes.answers, weight, lora=True).reshape(2, 2), 2, axis=1)
    found = last._loss(base, votes, np.arange(2), weight, 0.0, lora=True)
    expected = np.log1p(np.exp(-(first - second)[:, 0] + votes.margin)).mean()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_batch_goes_through_in_parts_and_learns_the_same(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs out of memory is told to lower `batch_tokens`."""
    votes = dataclasses.replace(planted_votes(16), weight=np.linspace(0.2, 1.0, 16))
    longest: list[int] = []
    asked = last.raw_scores

    def noted(base: Base, turns: list[Answer], *args: torch.Tensor, **more: bool) -> torch.Tensor:
        longest[-1] = max(longest[-1], sum(len(turn.response_ids) for turn in turns))
        return asked(base, turns, *args, **more)

    monkeypatch.setattr(last, "raw_scores", noted)
    heads = []
    for budget in (2048, 64):
        longest.append(0)
        config = RewardConfig(head="last", learning_rate=0.02, batch_pairs=16, batch_tokens=budget, epochs=2)
        heads.append(train_last(base, votes, np.arange(16), config, seed=0).weight)
    assert longest == [128, 56]
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-3, atol=1e-4)


def test_votes_ask_for_length_by_as_many_votes_as_were_judged(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of six held-out votes for the longer answer are chance, however many votes were learnt from."""
    votes = planted_votes(40)
    longer = np.arange(40) % 3 > 0
    answers = [
        Answer(answer.prompt_ids, answer.response_ids + (9,) * int(longer[at // 2] == (at % 2 == 0)))
        for at, answer in enumerate(votes.answers)
    ]
    votes = dataclasses.replace(votes, answers=tuple(answers))
    meter = Judgement(0.9, 0.4, 0.1, 0.97, 4 / 6, 0.9, 6, trusted_accuracy=0.9, trusted_votes=6.0)
    monkeypatch.setattr(refresh, "judgement", lambda *_: meter)
    with pytest.raises(RewardRefused, match="length meter"):
        refresh_last(base, votes, RewardConfig(head="last", last_lora=False), 0)


def test_votes_that_the_last_model_has_learnt_from_count_as_old(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def watched(base: Base, votes: Votes, *_: object) -> LastHead:
        seen.append(votes.weight)
        raise NotEnoughVotes

    monkeypatch.setattr(refresh, "train_last", watched)
    with pytest.raises(NotEnoughVotes):
        refresh_last(
            base,
            planted_votes(20),
            RewardConfig(head="last", old_votes=0.25),
            0,
            unseen_by_predecessor=lambda r: r > 11,
        )
    assert seen[0].tolist() == [0.25] * 12 + [1.0] * 8
