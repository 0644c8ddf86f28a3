"""Events as rows of parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from feedback.contracts import GOLD_RULE, PairShown, ThumbGiven, VoteCast
from feedback.dataset.parts import PartRow

PLANTED = "planted"
"""Kind of a vote on a planted pair: it judges its voter, and nothing is learnt from it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def vote_row(vote: VoteCast) -> PartRow:
    """A vote."""
    kind = PLANTED if vote.pair.contenders == GOLD_RULE else vote.choice
    return PartRow(vote.vote_id, kind, _micros(vote.cast_at), vote.to_bytes())


def pair_row(pair: PairShown) -> PartRow:
    """A pair."""
    return PartRow(pair.pair_id, "", _micros(pair.shown_at), pair.to_bytes())


def thumb_row(event: ThumbGiven) -> PartRow:
    """A thumb."""
    return PartRow(event.thumb_id, event.thumb, _micros(event.given_at), event.to_bytes())


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
