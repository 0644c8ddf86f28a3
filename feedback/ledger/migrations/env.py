"""Alembic's entry: runs the migrations on the connection, and in the transaction, that `migrate` hands over."""

from __future__ import annotations

from alembic import context

from feedback.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
