"""What a snapshot's tables hold, and how an event becomes a row of one. Pure functions.

preferences and ties have the same columns, and a row for every two answers of a vote: a ranking of K is K(K-1)/2 rows
of one `vote_id`, some in preferences and some in ties. In ties, `chosen` is the answer in the earlier position.
`prompt`, `chosen` and `rejected` are lists of messages: the conversational preference format that TRL and Hugging Face
`datasets` read.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from feedback.comparisons import Comparison, comparisons
from feedback.contracts import CompletionRecord, PairShown, VoteCast

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
TIME = pa.timestamp("us", tz="UTC")

VOTE_SCHEMA = pa.schema(
    [
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("vote_id", pa.string()),
        ("pair_id", pa.string()),
        ("conversation_id", pa.string()),
        ("voter", pa.string()),
        ("outcome", pa.string()),
        ("chosen_position", pa.string()),
        ("rejected_position", pa.string()),
        ("answers", pa.int8()),
        ("chosen_adapter", pa.string()),
        ("rejected_adapter", pa.string()),
        ("base_model", pa.string()),
        ("margin", pa.float64()),
        ("weight", pa.float64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("chosen_token_ids", pa.list_(pa.int32())),
        ("rejected_token_ids", pa.list_(pa.int32())),
        ("chosen_logprobs", pa.list_(pa.float32())),
        ("rejected_logprobs", pa.list_(pa.float32())),
        ("chosen_finish_reason", pa.string()),
        ("rejected_finish_reason", pa.string()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("reasons", pa.list_(pa.string())),
        ("comment", pa.string()),
        ("edited", pa.string()),
        ("contenders", pa.string()),
        ("source", pa.string()),
        ("propensity", pa.float64()),
        ("cast_at", TIME),
    ]
)

PROMPT_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("conversation_id", pa.string()),
        ("prompt", MESSAGES),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("shown_at", TIME),
    ]
)


def is_decisive(choice: str) -> bool:
    """Whether a vote of this choice names a winner."""
    return choice in {"a", "b", "ranking"}


def vote_rows(vote: VoteCast) -> list[tuple[bool, dict[str, Any]]]:
    """A vote's comparisons as rows of `VOTE_SCHEMA`, each with whether it names a winner.

    `weight` is the voter's, the same in all rows of a ranking: what a ranking's rows count together is for those to
    decide who count them (`train.reward.rankings`).
    """
    return [(comparison.decisive, _row(vote, comparison)) for comparison in comparisons(vote)]


def _row(vote: VoteCast, comparison: Comparison) -> dict[str, Any]:
    pair = vote.pair
    chosen, rejected = comparison.first, comparison.second
    if comparison.choice == "b":
        chosen, rejected = rejected, chosen
    return {
        "prompt": _prompt(pair),
        "chosen": _answer(chosen),
        "rejected": _answer(rejected),
        "vote_id": vote.vote_id,
        "pair_id": pair.pair_id,
        "conversation_id": pair.conversation_id,
        "voter": vote.voter,
        "outcome": "decisive" if comparison.decisive else comparison.choice,
        "chosen_position": chosen.position,
        "rejected_position": rejected.position,
        "answers": len(pair.completions),
        "chosen_adapter": chosen.adapter,
        "rejected_adapter": rejected.adapter,
        "base_model": pair.base_model,
        "margin": None,
        "weight": 1.0,
        "prompt_token_ids": pair.prompt_token_ids,
        "chosen_token_ids": chosen.token_ids,
        "rejected_token_ids": rejected.token_ids,
        "chosen_logprobs": chosen.logprobs,
        "rejected_logprobs": rejected.logprobs,
        "chosen_finish_reason": chosen.finish_reason,
        "rejected_finish_reason": rejected.finish_reason,
        "temperature": chosen.sampling.temperature,
        "top_p": chosen.sampling.top_p,
        "reasons": vote.reasons,
        "comment": vote.comment,
        "edited": vote.edited,
        "contenders": pair.contenders,
        "source": pair.source,
        "propensity": pair.propensity,
        "cast_at": vote.cast_at,
    }


def prompt_row(pair: PairShown) -> dict[str, Any]:
    """A shown pair as a row of `PROMPT_SCHEMA`."""
    return {
        "pair_id": pair.pair_id,
        "conversation_id": pair.conversation_id,
        "prompt": _prompt(pair),
        "prompt_token_ids": pair.prompt_token_ids,
        "shown_at": pair.shown_at,
    }


def _prompt(pair: PairShown) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in pair.messages]


def _answer(completion: CompletionRecord) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": completion.text}]
