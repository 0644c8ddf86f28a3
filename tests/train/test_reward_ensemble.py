"""Ensembles, rankings and held-out splits of the reward model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.dataset import Dataset
from tests.feedback.events import vote
from tests.feedback.test_rankings import ranked
from tests.train.test_reward_mix import LAYERS, head_for, made_votes, planted, pooled_of, some_sequences, tables
from train.errors import RewardRefused
from train.reward import ensemble, judge
from train.reward.config import RewardConfig
from train.reward.mix import MixHead, fit_members, fit_problem, make_head, pose
from train.reward.refresh import refresh
from train.reward.votes import Answer, Votes, clear_of, folds, ranking_weights, read_votes, script


def doubting_head(pessimism: float) -> tuple[MixHead, dict[str, np.ndarray]]:
    pooled = pooled_of(some_sequences(0, batch=40))
    votes = made_votes(np.random.default_rng(1).normal(size=40))
    problem = pose(pooled, votes, np.arange(20))
    fitted = fit_problem(problem)
    members = fit_members(problem, fitted, ensemble.bootstrap(votes.conversation, 4, 0))
    about = {"layers": LAYERS, "vocabulary": tables(), "base_fingerprint": "b" * 64, "metrics": {}}
    return make_head(fitted, pooled, votes, members=members, pessimism=pessimism, **about), pooled


def rewards_of(head: MixHead) -> torch.Tensor:
    batch = some_sequences(0, batch=40)
    return head.token_rewards(batch.hidden, batch.token_ids, batch.prompt_mask, batch.response_mask)


@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_a_pessimistic_score_still_splits_exactly_over_the_tokens(pessimism: float, tmp_path: Path) -> None:
    head, pooled = doubting_head(pessimism)
    scores = head.scores(pooled)
    np.testing.assert_allclose(rewards_of(head).sum(dim=1).numpy(), scores, atol=5e-5)
    assert scores.mean() == pytest.approx(0.0, abs=1e-4)
    assert scores.std() == pytest.approx(1.0, abs=1e-4)
    head.save(tmp_path)
    again = MixHead.load(tmp_path)
    assert again.model_id == head.model_id
    torch.testing.assert_close(rewards_of(again), rewards_of(head))


def test_pessimism_takes_the_members_deviation_off_the_mean() -> None:
    head, pooled = doubting_head(1.0)
    mean = replace(head, pessimism=0.0).scores(pooled)
    # by hand, member by member: the deviations from the mean, squared, averaged, rooted
    members = []
    for k in range(4):
        weights = {name: head.weights[name] + head.members[name][k] for name in head.weights}
        members.append(replace(head, pessimism=0.0, weights=weights).scores(pooled))
    spread = np.sqrt(np.mean([(one - mean) ** 2 for one in members], axis=0))
    np.testing.assert_allclose(head.scores(pooled), mean - spread + spread.mean(), atol=1e-5)
    assert spread.min() > 0


def test_members_differ_most_about_what_the_votes_say_least_of() -> None:
    scores = np.array([[1.0, 0.1, 0.0], [-1.0, -0.1, 0.0]])
    assert ensemble.deviation(scores).tolist() == pytest.approx([1.0, 0.1, 0.0])
    assert ensemble.disagreement(scores, np.array([0, 1]), np.array([2, 2])).tolist() == pytest.approx([1.0, 0.1])


def test_a_head_without_ensemble_says_so() -> None:
    pooled = pooled_of(some_sequences(0, batch=40))
    head = head_for(pooled, made_votes(np.random.default_rng(1).normal(size=40)))
    with pytest.raises(ValueError, match=r"train\.reward\.members"):
        head.member_scores(pooled)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 99))
def test_the_bootstrap_draws_whole_conversations(groups: list[int], seed: int) -> None:
    labels = np.array(groups)
    counts = ensemble.bootstrap(labels, 5, seed)
    for member in counts:
        per_group = {int(g): set(member[labels == g]) for g in labels}
        assert all(len(seen) == 1 for seen in per_group.values())
        assert sum(seen.pop() for seen in per_group.values()) == len(set(groups))


def votes_on(pairs: list[tuple[int, int]], conversation: list[int], voter: list[int]) -> Votes:
    n = len(pairs)
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    return Votes(
        answers=tuple(Answer((1, 2), (i,)) for i in range(int(max(first.max(), second.max())) + 1)),
        first=first,
        second=second,
        tied=np.zeros(n, dtype=bool),
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.array(conversation),
        voter=np.array(voter),
        reasons=((),) * n,
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=25
    ),
    st.booleans(),
)
def test_no_held_out_vote_shares_voter_conversation_or_answer_with_what_is_learnt(
    rows: list[tuple[int, int, int, int]], by_voter: bool
) -> None:
    votes = votes_on([(a, b) for a, b, _, _ in rows], [c for _, _, c, _ in rows], [v for _, _, _, v in rows])
    groups = votes.voter if by_voter else votes.conversation
    fold = folds(groups, min(3, len(np.unique(groups))), seed=1)
    for held in np.unique(fold):
        unseen = np.flatnonzero(fold == held)
        learnt = clear_of(votes, unseen, np.flatnonzero(fold != held))
        for mine in (votes.conversation, groups):
            assert not set(mine[learnt]) & set(mine[unseen])
        answers = [set(votes.first[at]) | set(votes.second[at]) for at in (learnt, unseen)]
        assert not answers[0] & answers[1]


def test_all_pairs_of_a_ranking_count_once_an_answer_or_once_in_all() -> None:
    # voter 0 ranks answers 0 1 2 (three pairs), voter 1 casts one pair of the same answers
    votes = votes_on([(0, 1), (0, 2), (1, 2), (0, 1)], [0, 0, 0, 1], [0, 0, 0, 1])
    assert ranking_weights(votes, "answer").tolist() == pytest.approx([0.5, 0.5, 0.5, 1.0])
    assert ranking_weights(votes, "prompt").tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert ranking_weights(votes, "pair").tolist() == [1.0, 1.0, 1.0, 1.0]


def test_two_separate_pairs_of_one_prompt_are_no_ranking() -> None:
    votes = votes_on([(0, 1), (2, 3)], [0, 1], [0, 0])
    assert ranking_weights(votes, "prompt").tolist() == [1.0, 1.0]
    assert ranking_weights(votes, "answer").tolist() == [1.0, 1.0]


def test_what_follows_from_length_is_taken_out() -> None:
    # difference = 2 * length difference + (1, 1, -1, -1), which is orthogonal to the lengths
    longer = np.array([1.0, -1.0, 2.0, -2.0])
    left = judge.without_length(2 * longer + np.array([1.0, 1.0, -1.0, -1.0]), longer)
    assert left.tolist() == pytest.approx([1.0, 1.0, -1.0, -1.0])


def test_drift_is_what_two_models_do_not_share() -> None:
    new, old = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])
    moved, turned = judge.drift(new, old, np.array([0, 0, 2]), np.array([1, 2, 3]))
    assert moved == pytest.approx(1 - 0.6)  # covariance 3/4, variances 5/4
    assert turned == pytest.approx(2 / 3)


def test_scripts_stand_in_for_languages() -> None:
    assert [script(text) for text in ("Grüße, 12!", "привет hi", "你好", "42?")] == ["Latin", "Cyrillic", "Han", "none"]


def test_turns_and_scripts_come_from_the_snapshot() -> None:
    row = {
        "outcome": "decisive",
        "prompt_token_ids": [1],
        "chosen_token_ids": [5],
        "rejected_token_ids": [6],
        "conversation_id": "c",
        "voter": "v",
        "prompt": [{"role": "user", "content": "hola"}] * 3,
    }
    votes = read_votes([row], [])
    assert (votes.turns, votes.scripts) == ((3,), ("Latin",))


def test_a_refresh_reports_calibration_drift_and_disagreement_and_old_votes_may_count_less() -> None:
    pooled, votes = planted(48)
    about = {"layers": LAYERS, "vocabulary": tables(), "base_fingerprint": "f"}
    first = refresh(pooled, votes, RewardConfig(members=3), **about)
    assert set(first.head.members) == set(pooled)
    figures = first.judgement.metrics()
    assert {"reward_ece_raw", "reward_temperature", "reward_disagreement", "reward_accuracy_length_controlled"} <= set(
        figures
    )
    assert "reward_drift" not in figures
    assert first.judgement.log_loss <= first.judgement.raw_log_loss + 1e-9
    again = refresh(pooled, votes, RewardConfig(members=0, old_votes=0.5), predecessor=first.head, **about)
    assert not again.head.members
    assert 0 < again.judgement.drift < 0.2  # the same votes at half their weight: shrunk, not turned


def test_a_refusal_names_its_test() -> None:
    pooled, _ = planted(40)
    random = made_votes(np.random.default_rng(5).normal(size=80))
    with pytest.raises(RewardRefused) as refused:
        refresh(pooled, random, RewardConfig(members=0), layers=LAYERS, vocabulary=tables(), base_fingerprint="f")
    assert refused.value.test == "coin"


def test_a_ranking_in_a_snapshot_is_known_as_one(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1), ranked(4, "c>a=b"), ranked(8, "b>a>c")])
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    votes = read_votes(snapshot.preferences.to_pylist(), snapshot.ties.to_pylist())
    assert len(votes) == 7
    weights = dict.fromkeys(votes.vote_ids, 0.0)
    for name, weight in zip(votes.vote_ids, ranking_weights(votes, "prompt"), strict=True):
        weights[name] += weight
    assert weights == pytest.approx({"w1": 1.0, "w4": 1.0, "w8": 1.0})
    assert sorted(ranking_weights(votes, "answer")) == pytest.approx([0.5] * 6 + [1.0])
