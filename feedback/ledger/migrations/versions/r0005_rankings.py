"""Three and four answers, and the votes that rank them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what is there already are pairs of two."""
    op.add_column("pairs", sa.Column("adapter_c", sa.String))
    op.add_column("pairs", sa.Column("adapter_d", sa.String))
    op.add_column("pairs", sa.Column("answers", sa.Integer, nullable=False, server_default="2"))
    op.add_column("votes", sa.Column("ranking", sa.String))
    ranked = sa.text("answers > 2")
    op.create_index("ix_pairs_ranked", "pairs", ["shown_us"], sqlite_where=ranked, postgresql_where=ranked)


def downgrade() -> None:
    """Drop the columns. The events keep their rankings, but an older Hustings can't read those."""
    op.drop_index("ix_pairs_ranked", "pairs")
    op.drop_column("votes", "ranking")
    for name in ("answers", "adapter_d", "adapter_c"):
        op.drop_column("pairs", name)
