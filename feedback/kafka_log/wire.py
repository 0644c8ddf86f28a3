"""What the two ends of `feedback.kafka_log.apart` write to each other: JSON for what is said, and bytes as they are."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import orjson

from feedback.event_log import (
    EventLogError,
    EventLogUnavailable,
    GroupRebalanced,
    OutgoingRecord,
    RecordTooLarge,
    StoredRecord,
    TopicsMissing,
)

Wire = Connection
"""A duplex connection of whole messages; both ends belong to one installation of one version."""
Said = dict[str, Any]
Carried = list[bytes | None]
_LENGTH = struct.Struct("!I")
_NONE = -1
_ERRORS = {
    kind.__name__: kind for kind in (EventLogError, EventLogUnavailable, TopicsMissing, GroupRebalanced, RecordTooLarge)
}


def send(wire: Wire, said: Said, carried: Sequence[bytes | None] = ()) -> None:
    """Write one message.

    Raises:
        OSError: the other end is gone.
    """
    sizes = [_NONE if each is None else len(each) for each in carried]
    head = orjson.dumps({"said": said, "sizes": sizes})
    wire.send_bytes(b"".join((_LENGTH.pack(len(head)), head, *(each for each in carried if each))))


def receive(wire: Wire) -> tuple[Said, Carried]:
    """Read one message; blocks.

    Raises:
        EOFError, OSError: the other end is gone.
    """
    whole = memoryview(wire.recv_bytes())
    at = _LENGTH.size + _LENGTH.unpack_from(whole)[0]
    head = orjson.loads(whole[_LENGTH.size : at])
    carried: Carried = []
    for size in head["sizes"]:
        carried.append(None if size == _NONE else bytes(whole[at : at + size]))
        at += max(size, 0)
    return head["said"], carried


def error_said(error: EventLogError) -> list[str]:
    """An error, to be read by `error_of`: by the nearest kind that both ends know."""
    return [next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), str(error)]


def error_of(said: Sequence[str]) -> EventLogError:
    """The error again."""
    kind, message = said
    return _ERRORS[kind](message)


def outgoing_said(records: Sequence[OutgoingRecord]) -> tuple[list[list[str]], Carried]:
    """Records to send, to be read by `outgoing_of`."""
    return [[one.topic, one.key, one.event_id] for one in records], [one.value for one in records]


def outgoing_of(said: Sequence[Sequence[str]], carried: Carried) -> list[OutgoingRecord]:
    """The records again."""
    return [
        OutgoingRecord(topic, key, value, event_id) for (topic, key, event_id), value in zip(said, carried, strict=True)
    ]


def stored_said(records: Sequence[StoredRecord]) -> tuple[list[list[Any]], Carried]:
    """Records as the log holds them, to be read by `stored_of`."""
    return [[one.topic, one.partition, one.offset, one.timestamp_ms] for one in records], [
        each for one in records for each in (one.key, one.value)
    ]


def stored_of(said: Sequence[Sequence[Any]], carried: Carried) -> list[StoredRecord]:
    """The records again."""
    return [
        StoredRecord(topic, partition, offset, key, value, timestamp_ms)
        for (topic, partition, offset, timestamp_ms), key, value in zip(said, carried[::2], carried[1::2], strict=True)
    ]
