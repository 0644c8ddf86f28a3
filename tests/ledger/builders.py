"""Small events for tests."""

from sqlalchemy import Connection

from feedback.contracts import Choice, CompletionRecord, Message, PairShown, SamplingRecord
from feedback.ledger import ballots

SAMPLING = SamplingRecord(temperature=1.0, top_p=0.95, max_tokens=64, seed=7)


def shown(pair_id="pair_1", *, conversation_id="talk_1", voter="v_ann", adapters=("policy-000001", None), **more):
    completions = tuple(
        CompletionRecord(
            position=position,
            text=f"answer {position}",
            finish_reason="stop",
            adapter=adapter,
            sampling=SAMPLING,
            token_ids=(1, 2, 3),
            logprobs=(-0.1, -1 / 3, -2.5e-7),
        )
        for position, adapter in zip("abcd", adapters, strict=False)
    )
    return PairShown(
        pair_id=pair_id,
        conversation_id=conversation_id,
        voter=voter,
        messages=(Message(role="user", content="Grüße? ☕"),),
        completions=completions,
        contenders="self-play",
        propensity=0.5,
        base_model="tiny",
        prompt_token_ids=(5, 6),
        **more,
    )


def shown_and_voted(connection: Connection, pair: PairShown, choice: Choice) -> None:
    """A pair and its voter's vote, within the caller's transaction: hundreds of commits would take their time."""
    ballots.record_pair(connection, pair)
    ballots.record_vote(
        connection,
        pair_id=pair.pair_id,
        voter=pair.voter,
        choice=choice,
        reasons=(),
        comment=None,
        edited=None,
        dwell_ms=None,
    )
