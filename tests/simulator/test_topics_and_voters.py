"""Prompts and voters are what the seed says, and err as often as they were told to."""

import random
from collections import Counter

import pytest

from feedback.contracts import Message
from feedback.simulator import HELD_OUT_TOPICS, TRAIN_TOPICS, prompts, utility
from feedback.simulator.voters import Temper, rank, vote

ASKED = (Message(role="user", content="Hello"),)


def test_the_splits_are_large_and_share_nothing():
    assert len(set(TRAIN_TOPICS)) == len(TRAIN_TOPICS) >= 120
    assert len(set(HELD_OUT_TOPICS)) == len(HELD_OUT_TOPICS) >= 60
    assert not set(TRAIN_TOPICS) & set(HELD_OUT_TOPICS)


def test_prompts_depend_on_the_seed_only():
    assert prompts("train", 50, seed=3) == prompts("train", 50, seed=3)
    assert prompts("train", 50, seed=3) != prompts("train", 50, seed=4)
    assert prompts("train", 80, seed=3)[:50] == prompts("train", 50, seed=3)


def test_every_topic_comes_once_before_any_comes_again_and_then_in_other_words():
    asked = prompts("held_out", 120, seed=1)
    assert Counter(prompt.topic for prompt in asked[:60]) == Counter(HELD_OUT_TOPICS)
    assert len({prompt.text for prompt in asked}) == 120
    assert all(prompt.topic in prompt.text for prompt in asked)


def ballots(temper, a="?", b=".", count=4000):
    rng = random.Random(5)
    return Counter(vote(utility("questions"), temper, ASKED, a, b, rng=rng).choice for _ in range(count))


def test_without_faults_the_taste_decides():
    honest = Temper(noise=0, side_bias=0, both_bad=0)
    assert ballots(honest, count=20) == {"a": 20}
    assert ballots(honest, a=".", b="?", count=20) == {"b": 20}
    assert ballots(honest, a=".", b="!", count=20) == {"tie": 20}


def test_noise_flips_its_share_of_decisive_votes():
    # 4,000 draws at 0.15: the standard deviation is 23.
    assert ballots(Temper(noise=0.15, side_bias=0))["b"] == pytest.approx(600, abs=100)


def test_side_bias_goes_to_the_left_whatever_is_there():
    assert ballots(Temper(noise=0, side_bias=0.2), a=".", b="?")["a"] == pytest.approx(800, abs=110)


def test_some_ties_are_both_bad():
    found = ballots(Temper(noise=0, side_bias=0, both_bad=0.1), a=".", b=".")
    assert found["both_bad"] == pytest.approx(400, abs=80)
    assert found["tie"] + found["both_bad"] == 4000


def test_a_wide_tie_margin_makes_ties():
    assert set(ballots(Temper(noise=0, side_bias=0, both_bad=0, tie_margin=1.0), count=10)) == {"tie"}


def test_a_ballot_keeps_what_an_honest_voter_would_have_said():
    ballot = vote(utility("questions"), Temper(noise=1, side_bias=0), ASKED, "?", ".", rng=random.Random(0))
    assert (ballot.choice, ballot.honest, ballot.decisive) == ("b", "a", True)


def ranked(answers, seed=0, **temper):
    calm = Temper(**{"noise": 0.0, "side_bias": 0.0, "both_bad": 0.0} | temper)
    return rank(utility("questions"), calm, ASKED, answers, rng=random.Random(seed))


def test_a_ranking_puts_like_with_like():
    ballot = ranked(["no", "one?", "two? two?", "one?"])
    assert ballot.ranking == (("c",), ("b", "d"), ("a",))
    assert (ballot.said, ballot.agreement, ballot.left) == ({"ranking": ballot.ranking}, 1.0, 0.0)


def test_answers_that_are_all_alike_are_a_tie_or_all_bad():
    assert ranked(["x", "y", "z"]).said == {"choice": "tie"}
    assert ranked(["x", "y", "z"], both_bad=1.0).said == {"choice": "both_bad"}
    assert not ranked(["x", "y", "z"]).decisive


def test_noise_confuses_neighbours():
    swapped = ranked(["a? a? a?", "b? b?", "c?"], noise=1.0)
    assert swapped.ranking == (("b",), ("c",), ("a",))  # the best is carried down
    assert swapped.agreement == pytest.approx(1 / 3)  # b over c is right; b and c over a are not
    careless = ranked(["a?", "b? b?", "c? c? c?"], side_bias=1.0)
    assert (careless.ranking, careless.left) == ((("a",), ("b",), ("c",)), 1.0)
