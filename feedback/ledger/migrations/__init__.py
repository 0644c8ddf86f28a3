"""Alembic migrations of the ledger, run by `feedback.ledger.migrate`."""
