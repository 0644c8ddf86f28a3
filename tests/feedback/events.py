"""Pairs and votes for the tests: small, all different, always the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from feedback.contracts import (
    AnswerShown,
    Choice,
    CompletionRecord,
    Message,
    PairShown,
    SamplingRecord,
    ThumbGiven,
    VoteCast,
)

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SAMPLING = SamplingRecord(temperature=0.7, top_p=0.9, max_tokens=8)
CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")


def pair(number: int) -> PairShown:
    return PairShown(
        pair_id=f"p{number}",
        conversation_id=f"c{number % 6}",
        voter=f"v_{number % 3}",
        messages=(Message(role="user", content=f"Question {number}?"),),
        completions=(
            CompletionRecord(
                position="a",
                text=f"Left {number}",
                finish_reason="stop",
                adapter=None,
                sampling=SAMPLING,
                token_ids=(number, 1),
                logprobs=(-0.5, -0.25),
            ),
            CompletionRecord(
                position="b",
                text=f"Right {number}",
                finish_reason="length",
                adapter="policy-000001",
                sampling=SAMPLING,
                token_ids=(number, 2, 3),
                logprobs=(-1.0, -2.0, -0.125),
            ),
        ),
        contenders="candidate",
        propensity=0.25,
        base_model="tiny",
        prompt_token_ids=(7, 8, number),
        shown_at=START + timedelta(seconds=number),
    )


def vote(number: int, choice: Choice | None = None) -> VoteCast:
    """Number 0 chooses a, 1 b, 2 tie, 3 both_bad, 4 a again, …"""
    return VoteCast(
        vote_id=f"w{number}",
        pair=pair(number),
        voter=f"v_{number % 3}",
        choice=choice or CHOICES[number % 4],
        cast_at=START + timedelta(seconds=number, milliseconds=500),
    )


def thumb(number: int) -> ThumbGiven:
    """A thumb up for the left answer of the pair of this number."""
    shown = pair(number)
    answer = AnswerShown(
        answer_id=f"a{number}",
        conversation_id=shown.conversation_id,
        voter=shown.voter,
        messages=shown.messages,
        completion=shown.completions[0],
        propensity=0.8,
        base_model="tiny",
        shown_at=shown.shown_at,
    )
    return ThumbGiven(thumb_id=f"t{number}", answer=answer, voter=shown.voter, thumb="up", given_at=shown.shown_at)
