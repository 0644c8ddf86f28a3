"""The ledger's tables. Times are microseconds since 1970 UTC, so that both databases keep them exactly.

The migrations below `migrations/` make these; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of exactly INTEGER."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

conversations = Table(
    "conversations",
    metadata,
    Column("conversation_id", String, primary_key=True),
    Column("voter", String, nullable=False),
    Column("began_us", BigInteger, nullable=False),
)

pairs = Table(
    "pairs",
    metadata,
    Column("pair_id", String, primary_key=True),
    Column("conversation_id", String, ForeignKey("conversations.conversation_id"), nullable=False, index=True),
    Column("voter", String, nullable=False),
    Column("adapter_a", String),
    Column("adapter_b", String),
    Column("adapter_c", String),
    Column("adapter_d", String),
    Column("answers", Integer, nullable=False, server_default="2"),
    Column("blind", Integer, nullable=False, server_default="1"),
    Column("contenders", String, nullable=False),
    Column("shown_us", BigInteger, nullable=False),
    Column("event", LargeBinary, nullable=False),
    Index(None, "adapter_a", "adapter_b", "shown_us"),
)
"""`event` is the PairShown as it goes on the wire; the other columns are there to be searched. `blind` is 0 where an
answer gave away who gives it."""
Index("ix_pairs_ranked", pairs.c.shown_us, sqlite_where=pairs.c.answers > 2, postgresql_where=pairs.c.answers > 2)

votes = Table(
    "votes",
    metadata,
    Column("vote_id", String, primary_key=True),
    Column("pair_id", String, ForeignKey("pairs.pair_id"), nullable=False),
    Column("voter", String, nullable=False, index=True),
    Column("choice", String, nullable=False),
    Column("ranking", String),
    Column("cast_us", BigInteger, nullable=False, index=True),
    Column("event", LargeBinary, nullable=False),
    UniqueConstraint("pair_id", "voter"),
)
"""`event` is the VoteCast without its pair, which stands in `pairs`; `ranking` is its ranking in one line."""

answers = Table(
    "answers",
    metadata,
    Column("answer_id", String, primary_key=True),
    Column("conversation_id", String, ForeignKey("conversations.conversation_id"), nullable=False),
    Column("voter", String, nullable=False, index=True),
    Column("adapter", String),
    Column("shown_us", BigInteger, nullable=False),
    Column("event", LargeBinary, nullable=False),
)
"""Single answers; `event` is the AnswerShown."""

thumbs = Table(
    "thumbs",
    metadata,
    Column("thumb_id", String, primary_key=True),
    Column("answer_id", String, ForeignKey("answers.answer_id"), nullable=False),
    Column("voter", String, nullable=False),
    Column("thumb", String, nullable=False),
    Column("given_us", BigInteger, nullable=False),
    Column("event", LargeBinary, nullable=False),
    UniqueConstraint("answer_id", "voter"),
)
"""`event` is the ThumbGiven as it goes on the wire."""

outbox = Table(
    "outbox",
    metadata,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=True),
    Column("event_id", String, nullable=False, unique=True),
    Column("topic", String, nullable=False),
    Column("record_key", String, nullable=False),
    Column("value", LargeBinary),
    Column("state", String, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("sent_us", BigInteger),
    Column("sends", Integer, nullable=False),
    Column("error", Text),
    CheckConstraint("state IN ('pending', 'sent', 'confirmed', 'parked')", name="state"),
    Index(None, "state", "seq"),
    sqlite_autoincrement=True,
)
"""`value` is the event where no other table has it; before revision 0006 every row that wasn't confirmed had one.
`created_us` tells since when a row waits: when it was recorded, or was to be sent again."""

releases = Table(
    "releases",
    metadata,
    Column("name", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("manifest", Text),
    Column("reason", Text, nullable=False),
    Column("actor", String, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("change", BigInteger, nullable=False),
)
"""`change` is the row of `release_history` that made the state: the higher one is the later."""

release_history = Table(
    "release_history",
    metadata,
    Column("change", SEQUENCE, primary_key=True, autoincrement=True),
    Column("name", String, nullable=False, index=True),
    Column("event_id", String, nullable=False, unique=True),
    Column("event", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

gate_history = Table(
    "gate_history",
    metadata,
    Column("change", SEQUENCE, primary_key=True, autoincrement=True),
    Column("event_id", String, nullable=False, unique=True),
    Column("event", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""Pauses of the releases and their ends; the last one tells how it stands."""

forgotten = Table(
    "forgotten",
    metadata,
    Column("event_id", String, primary_key=True),
    Column("voter", String, nullable=False, index=True),
    Column("until_us", BigInteger, nullable=False),
    Column("event", LargeBinary, nullable=False),
)
"""Voters who asked to be forgotten: all that is left of them."""


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_us(microseconds: int) -> datetime:
    """The moment, in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)
