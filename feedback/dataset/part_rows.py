"""Events as rows of parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from feedback.contracts import PairShown, ThumbGiven, VoteCast
from feedback.dataset.parts import PartRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def vote_row(vote: VoteCast) -> PartRow:
    """A vote."""
    return PartRow(vote.vote_id, vote.choice, _micros(vote.cast_at), vote.to_bytes())


def pair_row(pair: PairShown) -> PartRow:
    """A pair."""
    return PartRow(pair.pair_id, "", _micros(pair.shown_at), pair.to_bytes())


def thumb_row(event: ThumbGiven) -> PartRow:
    """A thumb."""
    return PartRow(event.thumb_id, event.thumb, _micros(event.given_at), event.to_bytes())


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
