"""Where changes of releases are written: one transaction each, which another serving's can't cross."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from feedback.contracts import AdapterManifest, GateChanged, ReleaseChanged, ReleaseState
from feedback.ledger import Release
from serve.deps import ServeDeps, on_thread
from serve.errors import NotFound

AUTO = "auto"
OPERATOR = "operator"
log = structlog.get_logger(__name__)


class Desk:
    """Reads and writes releases in the ledger, off the event loop."""

    def __init__(self, deps: ServeDeps) -> None:
        self._deps = deps

    async def record(self, *changes: ReleaseChanged, manifest: AdapterManifest | None = None) -> None:
        """Write changes that belong together.

        Raises:
            ReleaseConflict: another serving has moved one of them meanwhile.
            LedgerUnavailable: the ledger is away; nothing was written.
        """
        await on_thread(self._deps.ledger.record_releases, changes, manifest, compare=True)
        for change in changes:
            self._deps.metrics.release_changes.labels(change.after.value).inc()
            log.info(
                "release changed",
                adapter=change.name,
                before=change.before and change.before.value,
                after=change.after.value,
                reason=change.reason,
                actor=change.actor,
            )

    async def release(self, name: str) -> Release | None:
        """This release, or None."""
        return await on_thread(self._deps.ledger.release, name)

    async def known(self, name: str) -> Release:
        """This release.

        Raises:
            NotFound: there is none of this name.
        """
        release = await self.release(name)
        if release is None:
            raise NotFound(f"No release is called {name}; GET /v1/releases lists them.")
        return release

    async def releases_in(self, states: Collection[ReleaseState]) -> list[Release]:
        """All in these states, the newest adapter last."""
        return await on_thread(self._deps.ledger.releases_in, states)

    async def history(self) -> list[ReleaseChanged]:
        """Every change, the oldest first."""
        return await on_thread(self._deps.ledger.release_history)

    async def office(self) -> str | None:
        """Who is in office by the ledger; None is the base."""
        return await on_thread(self._deps.ledger.office)

    async def gate(self) -> Sequence[GateChanged]:
        """Pauses and their ends, the oldest first."""
        return await on_thread(self._deps.ledger.gate_history)

    async def record_gate(self, change: GateChanged) -> None:
        """Write a pause, or its end."""
        await on_thread(self._deps.ledger.record_gate, change)
        log.info("releases paused" if change.paused else "releases go on", reason=change.reason, actor=change.actor)


def change(
    name: str,
    before: ReleaseState | None,
    after: ReleaseState,
    reason: str,
    actor: str,
    *,
    figures: dict[str, float] | None = None,
) -> ReleaseChanged:
    """A change that happens now."""
    return ReleaseChanged(name=name, before=before, after=after, reason=reason, actor=actor, figures=figures or {})
