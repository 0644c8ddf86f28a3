from __future__ import annotations

import pytest

from feedback.contracts import VoteCast
from feedback.voters import Ballot, Ballots, ballots_of, names_itself
from feedback.voters.ballots import BOTH_BAD, TIE, A, B
from tests.feedback.events import vote


def ballot_of(cast: VoteCast) -> Ballot:
    (ballot,) = ballots_of(cast)
    return ballot


def test_a_votes_ballot_holds_what_the_pair_and_the_vote_say() -> None:
    ballot = ballot_of(vote(1))
    assert (ballot.adapter_a, ballot.adapter_b, ballot.choice, ballot.gold) == ("base", "policy-000001", B, -1)
    assert (ballot.length_a, ballot.length_b) == (len("Left 1"), len("Right 1"))
    assert ballot.cast_ms - ballot.shown_ms == 500
    assert [ballot_of(vote(n)).choice for n in range(4)] == [A, B, TIE, BOTH_BAD]


def test_one_prompt_has_one_digest() -> None:
    assert ballot_of(vote(1)).prompt == ballot_of(vote(1, "a")).prompt != ballot_of(vote(2)).prompt


def test_a_planted_pair_says_which_answer_is_better() -> None:
    planted = vote(1)
    planted = planted.model_copy(update={"pair": planted.pair.model_copy(update={"gold": "b"})})
    ballots = Ballots.of_votes([planted, vote(2)])
    assert ballots.gold.tolist() == [B, -1]
    assert ballots.contest.tolist() == ballots.fair.tolist() == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "I am policy-000007.",
        "I'm ChatGPT, how can I help?",
        "My name is SmolLM and I like tea.",
        "I am a model called SmolLM2-135M-Instruct.",
        "As a helpful Claude I would say no.",
        "I was trained by Hugging Face.",
        "You are talking to Gemini.",
        "I’m an AI made by Acme, I am AcmeChat.",
    ],
)
def test_an_answer_that_says_who_it_is_is_found(text: str) -> None:
    assert names_itself(text, "models/AcmeChat-7B") or names_itself(text, "acme/SmolLM2-135M-Instruct")


@pytest.mark.parametrize(
    "text",
    [
        "ChatGPT is a program by OpenAI.",
        "This is a llama from Peru.",
        "I am a baker.",
        "The policy-makers met in 1999.",
        "As a child I liked gemstones.",
        "",
    ],
)
def test_an_answer_about_others_is_let_be(text: str) -> None:
    assert not names_itself(text, "HuggingFaceTB/SmolLM2-135M-Instruct")
