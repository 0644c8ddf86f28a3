"""Single answers, and the thumbs given to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both tables."""
    op.create_table(
        "answers",
        sa.Column("answer_id", sa.String, nullable=False),
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("voter", sa.String, nullable=False),
        sa.Column("adapter", sa.String, nullable=True),
        sa.Column("shown_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("answer_id", name="pk_answers"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.conversation_id"], name="fk_answers_conversation_id"
        ),
    )
    op.create_index("ix_answers_voter", "answers", ["voter"])
    op.create_table(
        "thumbs",
        sa.Column("thumb_id", sa.String, nullable=False),
        sa.Column("answer_id", sa.String, nullable=False),
        sa.Column("voter", sa.String, nullable=False),
        sa.Column("thumb", sa.String, nullable=False),
        sa.Column("given_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("thumb_id", name="pk_thumbs"),
        sa.ForeignKeyConstraint(["answer_id"], ["answers.answer_id"], name="fk_thumbs_answer_id"),
        sa.UniqueConstraint("answer_id", "voter", name="uq_thumbs_answer_id_voter"),
    )


def downgrade() -> None:
    """Drop both, and what they hold."""
    op.drop_table("thumbs")
    op.drop_index("ix_answers_voter", "answers")
    op.drop_table("answers")
