"""What a refreshed reward model is judged by, and against whom: votes that the judged fit has not seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.train.test_reward_mix import LAYERS, head_for, made_votes, planted, tables
from train.errors import RewardRefused
from train.reward import judge
from train.reward.config import RewardConfig
from train.reward.mix import answer_views
from train.reward.refresh import out_of_fold, refresh
from train.reward.votes import Votes

ABOUT: dict[str, Any] = {"layers": LAYERS, "vocabulary": tables(), "base_fingerprint": "b" * 64}
ALONE = RewardConfig(members=0)


def turned(votes: Votes, count: int) -> Votes:
    """The first `count` votes the other way round."""
    flip = np.arange(len(votes)) < count
    first, second = votes.first, votes.second
    return replace(votes, first=np.where(flip, second, first), second=np.where(flip, first, second))


def repeated(votes: Votes, times: int) -> Votes:
    """The same votes so many times."""
    names = ("first", "second", "tied", "both_bad", "weight", "margin", "voter", "conversation")
    more: dict[str, Any] = {name: np.concatenate([getattr(votes, name)] * times) for name in names}
    return replace(votes, **more, reasons=((),) * (times * len(votes)))


def test_a_reward_model_that_its_predecessor_beats_on_new_votes_is_refused() -> None:
    pooled, votes = planted(88, seed=1)
    good, spoilt = head_for(pooled, votes), turned(votes, 16)
    with pytest.raises(RewardRefused, match="worse than its predecessor on 72 votes that neither saw") as raised:
        refresh(pooled, spoilt, ALONE, predecessor=good, unseen_by_predecessor=lambda row: row >= 16, **ABOUT)
    assert raised.value.test == "predecessor"
    # votes that the predecessor has learnt from say nothing of which is better
    refresh(pooled, spoilt, ALONE, predecessor=good, **ABOUT)


def test_votes_are_old_only_to_a_predecessor_that_has_learnt_from_them() -> None:
    pooled, votes = planted(64, noise=0.4)
    found = [refresh(pooled, votes, RewardConfig(members=0, old_votes=old), **ABOUT).judgement for old in (1.0, 0.1)]
    assert found[0].metrics() == found[1].metrics()


def test_the_temperature_that_held_out_votes_ask_for_is_in_the_heads_logits() -> None:
    # whoever says everything six times over makes the fit surer than it may be
    pooled, once = planted(40, seed=1, noise=0.5)
    votes = repeated(once, 6)
    made = refresh(pooled, votes, RewardConfig(members=0, rankings="pair"), **ABOUT)
    assert made.judgement.temperature < 0.95
    plain = head_for(pooled, votes)
    assert made.head.scale == pytest.approx(made.judgement.temperature * plain.scale, rel=1e-6)


def test_whole_voters_are_held_out_for_the_figure_on_new_voters() -> None:
    """Each of eight voters judges by a column of their own: whoever is left out, nobody else tells about it."""
    rng = np.random.default_rng(0)
    voter = np.arange(96) % 8
    values = np.zeros((192, 8))
    values[np.arange(192), np.repeat(voter, 2)] = rng.normal(size=192)
    votes = replace(made_votes(values.sum(axis=1)), voter=voter)
    judged = refresh({"state:0": values}, votes, RewardConfig(members=0, folds=8), **ABOUT).judgement
    assert judged.accuracy > 0.9
    assert judged.new_voters == 0.5


def test_an_answer_that_others_were_shown_too_is_not_judged_by_its_own_votes() -> None:
    """Coins, each of which two people saw fall: the second conversation must not tell about the first."""
    rng = np.random.default_rng(3)
    pooled = {"state:0": rng.normal(size=(160, 64))}
    once = made_votes(rng.normal(size=160))
    twice = replace(repeated(once, 2), conversation=np.arange(160))
    seen = answer_views(pooled, twice, {})
    assert 0.35 < judge.accuracy(out_of_fold(pooled, seen, twice, twice.conversation, 5, 0)) < 0.65
