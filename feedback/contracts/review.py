"""Pairs that a trainer prepares for people to judge (docs/voting.md, "Review pairs")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from feedback.contracts.base import Contract, Moment, Name, TokenIds, utc_now
from feedback.contracts.voting import MAX_MESSAGES, CompletionRecord, Message


class ReviewItem(Contract):
    """Two prepared answers that a vote on would tell the reward model much.

    Attributes:
        completions: in no order that means anything; whoever shows them draws the sides.
        propensity: probability with which just these two were drawn among the prompt's answers.
        information: nats that a vote on them is expected to tell about the reward model's heads.
    """

    item_id: Name
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    prompt_token_ids: TokenIds
    completions: tuple[CompletionRecord, CompletionRecord]
    propensity: float = Field(gt=0, le=1)
    information: float = Field(ge=0, allow_inf_nan=False)


class ReviewPool(Contract):
    """`train/review/pool.json`: the pairs that a trainer has prepared; the newest pool replaces the one before.

    Attributes:
        reward_model: whose heads chose them.
        base_model, base_fingerprint: of the base that the answers are from.
        adapter: who answered (None: the base).
    """

    schema_version: Literal[1] = 1
    reward_model: Name
    base_model: Name
    base_fingerprint: Name
    adapter: Name | None
    items: tuple[ReviewItem, ...]
    made_at: Moment = Field(default_factory=utc_now)
