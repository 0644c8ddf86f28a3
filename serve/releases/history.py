"""What the history of releases tells: pure functions of `ReleaseChanged`, the oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from feedback.contracts import GateChanged, ReleaseChanged, ReleaseState


def office_stack(history: Sequence[ReleaseChanged]) -> list[str]:
    """Office-holders to fall back to, the present one last; below all of them is the base.

    Who takes office is on top; taking it again drops what came after; who leaves it without a successor falls off; who
    was rejected is gone.
    """
    stack: list[str] = []
    for change in history:
        if change.after is ReleaseState.IN_OFFICE:
            if change.name in stack:
                del stack[stack.index(change.name) :]
            stack.append(change.name)
        elif change.after is ReleaseState.REJECTED and change.name in stack:
            stack.remove(change.name)
        elif change.after is ReleaseState.RETIRED and stack[-1:] == [change.name]:
            stack.pop()
    return stack


def canary(history: Sequence[ReleaseChanged]) -> str | None:
    """The adapter that is a canary now; of two, the one that became it last."""
    last = {change.name: change for change in history}
    now = [change for change in last.values() if change.after is ReleaseState.CANARY]
    return max(now, key=lambda change: change.changed_at).name if now else None


def verified(history: Sequence[ReleaseChanged]) -> str | None:
    """The newest adapter that has proved itself and waits for an operator."""
    last = {change.name: change.after for change in history}
    return max((name for name, state in last.items() if state is ReleaseState.VERIFIED), default=None)


def since(history: Sequence[ReleaseChanged], name: str) -> datetime:
    """When this adapter came into its present state."""
    return next(change.changed_at for change in reversed(history) if change.name == name)


def office_since(history: Sequence[ReleaseChanged]) -> datetime | None:
    """When the office last changed hands; None where it never did."""
    moves = (c for c in reversed(history) if ReleaseState.IN_OFFICE in (c.before, c.after))
    return next((change.changed_at for change in moves), None)


def newest_office_holder(history: Sequence[ReleaseChanged]) -> str | None:
    """The highest name that ever held office."""
    return max((change.name for change in history if change.after is ReleaseState.IN_OFFICE), default=None)


def paused(gate: Sequence[GateChanged]) -> bool:
    """Whether releases are paused."""
    return bool(gate) and gate[-1].paused
