"""What the curator tells of its work."""

from __future__ import annotations

from pydantic import Field

from feedback.contracts.base import Event, Moment, utc_now


class RecordsCurated(Event):
    """The curator's receipt: these events are durably in the dataset (or the dead-letter topic); stop sending them."""

    event_ids: tuple[str, ...]
    curated_at: Moment = Field(default_factory=utc_now)


class DeadLetter(Event):
    """A record that could not be read, kept whole. `value` and `key` are base64."""

    topic: str
    partition: int
    offset: int
    key: str | None
    value: str | None
    error: str
    rejected_at: Moment = Field(default_factory=utc_now)
