"""Many rows by one plain statement, written or read in as few steps of the driver as there can be.

Each step lets go of the interpreter's lock (adr/0090), and under load the thread that records votes gets it back only
when the event loop lets go of it in turn: one statement for each row, or an answer fetched row by row, waits for that
once a row. What SQLAlchemy does to compile a statement of a new length costs as much again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Table

AT_ONCE = 500
"""Rows of one statement: databases bound how many values it may carry."""


def insert(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, skip: bool = False
) -> int:
    """Insert rows, in their order; returns how many were inserted.

    Args:
        skip: leave out rows whose key is taken, where they would be an error otherwise.
    """
    into = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES "  # noqa: S608  the names are our own
    row = f"({marks(connection, len(columns))})"
    end = " ON CONFLICT DO NOTHING" if skip else ""
    inserted = 0
    for some in chunks(rows):
        values = tuple(value for each in some for value in each)
        inserted += connection.exec_driver_sql(into + ", ".join([row] * len(some)) + end, values).rowcount
    return inserted


def marks(connection: Connection, count: int) -> str:
    """So many places for values, in the driver's way of writing them."""
    return ", ".join(["?" if connection.dialect.paramstyle == "qmark" else "%s"] * count)


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items, so many at a time as one statement takes."""
    return (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))
