"""How findings name what they found: a few ids, and how many more there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

MOST_NAMED = 5
"""Ids that a finding names at most."""


def repeated(counts: Counter[str]) -> set[str]:
    """What was counted more than once."""
    return {name for name, count in counts.items() if count > 1}


def named(what: str, ids: Iterable[str]) -> str:
    """The finding in words; empty where there are no ids."""
    names = sorted(ids)
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{what}: {', '.join(names[:MOST_NAMED])}{more}"
