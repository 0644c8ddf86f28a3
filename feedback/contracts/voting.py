"""What people were shown and what they said of it: pairs, votes, single answers, thumbs; and their being forgotten."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from feedback.contracts.base import Contract, Event, LogProbs, Moment, Name, Text, TokenIds, utc_now

Position = Literal["a", "b", "c", "d"]
PairChoice = Literal["a", "b", "tie", "both_bad"]
"""What can be said of two answers."""
Choice = Literal["a", "b", "tie", "both_bad", "ranking"]
"""What a vote says: `ranking` where three or four answers were put in order, `VoteCast.ranking` telling how. `tie` and
`both_bad` are said of all answers, however many they are."""
Ranking = Annotated[
    tuple[Annotated[tuple[Position, ...], Field(min_length=1, max_length=4)], ...], Field(min_length=2, max_length=4)
]
"""Positions in order, the best first; those in one place are as good as each other."""
GOLD_RULE = "gold"
"""`PairShown.contenders` of planted pairs."""
REVIEW_RULE = "review"
"""`PairShown.contenders` of prepared pairs."""
Thumb = Literal["up", "down"]
FinishReason = Literal["stop", "length", "abort", "error"]
Reason = Annotated[str, Field(max_length=256)]
MAX_COMMENT = 10_000
MAX_MESSAGES = 10_000
MAX_EDITED = 100_000


class Message(Contract):
    """One turn of a conversation, in the conversational format of TRL and OpenAI."""

    role: Literal["system", "user", "assistant"]
    content: Text


class SamplingRecord(Contract):
    """How a completion was sampled. `seed` is None where the engine chose."""

    temperature: float = Field(ge=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=1)
    seed: int | None = None


class CompletionRecord(Contract):
    """One side of a pair as it was generated.

    Attributes:
        adapter: the adapter that spoke, or None for the base model.
        token_ids: the sampler's own ids, the ones to train on; never re-tokenised text.
        logprobs: natural-log probability of each id under the sampler, same length; or none at all.
    """

    position: Position
    text: Text
    finish_reason: FinishReason
    adapter: Name | None
    sampling: SamplingRecord
    token_ids: TokenIds = ()
    logprobs: LogProbs = ()

    @model_validator(mode="after")
    def _one_logprob_a_token(self) -> Self:
        if self.logprobs and len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.token_ids)} token_ids; one each is needed")
        return self


class PairShown(Event):
    """Two (or up to four) answers were shown to a voter, who was not told which adapter gave which.

    Attributes:
        voter: keyed pseudonym, never the raw identity.
        contenders: name of the rule that chose the adapters ("self-play", "candidate", "anchor", ...).
        propensity: probability with which that rule chose just these adapters in just these positions.
        prompt_token_ids: the prompt after the chat template, as the engine saw it.
        gold: position of the answer that is known to be the better one, where the pair was planted to see how a voter
            judges (docs/voting.md); such a pair compares no adapters and trains nothing.
        source: `review` where the answers lay prepared, to a question that the voter didn't ask (docs/voting.md,
            "Review pairs"); else `chat`.
    """

    pair_id: Name
    conversation_id: Name
    voter: Name
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    completions: tuple[CompletionRecord, ...] = Field(min_length=2, max_length=4)
    contenders: Name
    propensity: float = Field(gt=0, le=1)
    base_model: Name
    prompt_token_ids: TokenIds = ()
    gold: Position | None = None
    source: Literal["chat", "review"] = Field(default="chat", exclude_if=lambda source: source == "chat")
    shown_at: Moment = Field(default_factory=utc_now)


class VoteCast(Event):
    """A voter chose. The pair travels inside, so that a vote can be understood alone and needs no join.

    Attributes:
        schema_version: 2 for a ranking, which readers of version 1 would not understand; votes on pairs are written as
            they always were.
        ranking: where each answer came, in a vote that ranks them; None in any other.
    """

    schema_version: Literal[1, 2] = 1  # type: ignore[assignment]  # the one event of which there are two
    vote_id: Name
    pair: PairShown
    voter: Name
    choice: Choice
    ranking: Ranking | None = Field(default=None, exclude_if=lambda ranking: ranking is None)
    reasons: tuple[Reason, ...] = Field(default=(), max_length=100)
    comment: str | None = Field(default=None, max_length=MAX_COMMENT)
    edited: str | None = Field(default=None, max_length=MAX_EDITED)
    dwell_ms: int | None = Field(default=None, ge=0)
    cast_at: Moment = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _ranked_whole(self) -> Self:
        if (self.ranking is None) == (self.choice == "ranking"):
            raise ValueError("ranking belongs to the choice `ranking`, and to no other")
        if (self.schema_version == 2) != (self.ranking is not None):
            raise ValueError("a ranking is written as schema_version 2, any other vote as 1")
        if self.ranking is not None:
            shown = sorted(completion.position for completion in self.pair.completions)
            if len(shown) < 3 or sorted(position for place in self.ranking for position in place) != shown:
                raise ValueError(
                    f"ranking must name each of {', '.join(shown)} once; two answers take a choice instead"
                )
        return self


class VoterForgotten(Event):
    """The tombstone of a voter: whoever keeps events drops theirs, up to `until`, and never takes them again.

    Attributes:
        voter: the pseudonym; key of the record.
        until: events of a later time are somebody's who came back, and are kept.
    """

    event_id: Name
    voter: Name
    until: Moment
    forgotten_at: Moment = Field(default_factory=utc_now)

    def covers(self, voter: str, at: datetime) -> bool:
        """Whether an event of this voter and time is to be dropped."""
        return voter == self.voter and at <= self.until


class AnswerShown(Event):
    """One answer was shown, alone (chat mode), to a person who may give it a thumb.

    Attributes:
        voter: keyed pseudonym, never the raw identity.
        completion: the answer; its position is "a".
        propensity: probability with which a turn is answered once, not twice, as it was then configured.
        prompt_token_ids: the prompt after the chat template, as the engine saw it.
    """

    answer_id: Name
    conversation_id: Name
    voter: Name
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    completion: CompletionRecord
    propensity: float = Field(gt=0, le=1)
    base_model: Name
    prompt_token_ids: TokenIds = ()
    shown_at: Moment = Field(default_factory=utc_now)


class ThumbGiven(Event):
    """A thumb up or down for a single answer, which travels inside."""

    thumb_id: Name
    answer: AnswerShown
    voter: Name
    thumb: Thumb
    reasons: tuple[Reason, ...] = Field(default=(), max_length=100)
    comment: str | None = Field(default=None, max_length=MAX_COMMENT)
    given_at: Moment = Field(default_factory=utc_now)
