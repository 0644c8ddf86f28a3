"""Voters who asked to be forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "forgotten",
        sa.Column("event_id", sa.String, nullable=False),
        sa.Column("voter", sa.String, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_forgotten"),
    )
    op.create_index("ix_forgotten_voter", "forgotten", ["voter"])


def downgrade() -> None:
    """Drop it, and with it the knowledge whom not to take back."""
    op.drop_table("forgotten")
