"""Outbox rows without a value: the event is read from the table that keeps it. No table changes.

An older Hustings would send such rows as tombstones, so that it must not open this ledger.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: rows that have a value are sent with it."""


def downgrade() -> None:
    """Take what an older Hustings can't send out of its way; `hustings replay` there sends it, value and all."""
    op.execute(
        "UPDATE outbox SET state = 'sent' WHERE state = 'pending' AND value IS NULL"
        " AND topic IN ('hustings.pairs', 'hustings.votes', 'hustings.thumbs', 'hustings.forgotten')"
    )
