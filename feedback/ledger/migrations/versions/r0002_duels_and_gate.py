"""Finding the pairs of two adapters by an index; pauses of the releases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the index and the table."""
    op.create_index("ix_pairs_adapter_a_adapter_b_shown_us", "pairs", ["adapter_a", "adapter_b", "shown_us"])
    op.create_table(
        "gate_history",
        sa.Column("change", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("event_id", sa.String, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("change", name="pk_gate_history"),
        sa.UniqueConstraint("event_id", name="uq_gate_history_event_id"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Drop both, and the history of pauses with it."""
    op.drop_table("gate_history")
    op.drop_index("ix_pairs_adapter_a_adapter_b_shown_us", "pairs")
