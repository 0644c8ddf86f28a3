"""The first schema: conversations, pairs, votes, outbox, releases and their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make every table."""
    _make_chat()
    _make_outbox()
    _make_releases()


def downgrade() -> None:
    """Drop every table, and what they hold."""
    for table in ("release_history", "releases", "outbox", "votes", "pairs", "conversations"):
        op.drop_table(table)


def _make_chat() -> None:
    op.create_table(
        "conversations",
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("voter", sa.String, nullable=False),
        sa.Column("began_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", name="pk_conversations"),
    )
    op.create_table(
        "pairs",
        sa.Column("pair_id", sa.String, nullable=False),
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("voter", sa.String, nullable=False),
        sa.Column("adapter_a", sa.String),
        sa.Column("adapter_b", sa.String),
        sa.Column("contenders", sa.String, nullable=False),
        sa.Column("shown_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("pair_id", name="pk_pairs"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.conversation_id"], name="fk_pairs_conversation_id"
        ),
    )
    op.create_index("ix_pairs_conversation_id", "pairs", ["conversation_id"])
    op.create_table(
        "votes",
        sa.Column("vote_id", sa.String, nullable=False),
        sa.Column("pair_id", sa.String, nullable=False),
        sa.Column("voter", sa.String, nullable=False),
        sa.Column("choice", sa.String, nullable=False),
        sa.Column("cast_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("vote_id", name="pk_votes"),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.pair_id"], name="fk_votes_pair_id"),
        sa.UniqueConstraint("pair_id", "voter", name="uq_votes_pair_id_voter"),
    )
    op.create_index("ix_votes_voter", "votes", ["voter"])
    op.create_index("ix_votes_cast_us", "votes", ["cast_us"])


def _make_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("seq", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("event_id", sa.String, nullable=False),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("record_key", sa.String, nullable=False),
        sa.Column("value", sa.LargeBinary),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("sent_us", sa.BigInteger),
        sa.Column("sends", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("seq", name="pk_outbox"),
        sa.UniqueConstraint("event_id", name="uq_outbox_event_id"),
        sa.CheckConstraint("state IN ('pending', 'sent', 'confirmed', 'parked')", name=op.f("ck_outbox_state")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_state_seq", "outbox", ["state", "seq"])


def _make_releases() -> None:
    op.create_table(
        "releases",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("manifest", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_releases"),
    )
    op.create_table(
        "release_history",
        sa.Column("change", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("event_id", sa.String, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("change", name="pk_release_history"),
        sa.UniqueConstraint("event_id", name="uq_release_history_event_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_release_history_name", "release_history", ["name"])
