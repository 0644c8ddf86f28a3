"""Admission: how many requests are answered at once. More are told to come back, before they hurt anyone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import NotReady, Overloaded
from serve.text import without_addresses


class Gate:
    """Counts what is in flight on the event loop's thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0

    @property
    def inside(self) -> int:
        """Requests in flight."""
        return self._inside

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place until the block ends.

        Raises:
            Overloaded: all places are taken.
        """
        if self._inside >= self._limit:
            raise Overloaded(
                f"{self._inside} requests are being answered, which is the limit; try again in a few seconds.",
                retry_after_s=2.0,
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class Readiness:
    """Whether serving may answer yet, and if not, why."""

    def __init__(self) -> None:
        self._reason: str | None = "the model is still being loaded"
        self._behind: str | None = None

    @property
    def reason(self) -> str | None:
        """Why serving is not ready; None when it is."""
        return self._reason or self._behind

    @property
    def behind(self) -> str | None:
        """Why this serving can't follow the office, if it can't."""
        return self._behind

    def set_behind(self, reason: str | None) -> None:
        """Another serving has put somebody into office who can't be loaded here; None: we are level again."""
        self._behind = reason and without_addresses(reason)

    def set_ready(self) -> None:
        """Requests may come."""
        self._reason = None

    def set_unready(self, reason: str) -> None:
        """Requests are refused with this reason."""
        self._reason = without_addresses(reason)

    def require(self) -> None:
        """Pass when ready.

        Raises:
            NotReady: serving is starting, its engine is gone, or it can't follow the office.
        """
        self._pass_without(self.reason)

    def require_engine(self) -> None:
        """Pass though the office can't be followed: for who wants to mend that.

        Raises:
            NotReady: serving is starting or its engine is gone.
        """
        self._pass_without(self._reason)

    @staticmethod
    def _pass_without(reason: str | None) -> None:
        if reason is not None:
            raise NotReady(f"Not ready: {reason}. Try again in a few seconds.", retry_after_s=5.0)
