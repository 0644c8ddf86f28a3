"""Whether a pair's answers kept to themselves who gives them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Pairs that are there already count as they did."""
    op.add_column("pairs", sa.Column("blind", sa.Integer, nullable=False, server_default="1"))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("pairs", "blind")
