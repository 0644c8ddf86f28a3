"""Who is in office: installing, stepping back, and following what another serving has decided.

Every method is called with the release manager's lock held. Of each change the ledger comes first, in one transaction;
then the switch, one assignment; then what nobody needs is unloaded.
"""

from __future__ import annotations

import time

import structlog

from feedback.contracts import ReleaseChanged, ReleaseState
from serve.deps import ServeDeps
from serve.engines.base import EngineError
from serve.releases import history as told
from serve.releases.desk import AUTO, Desk, change
from serve.releases.errors import NotHere
from serve.releases.loader import REFUSALS, Loader

log = structlog.get_logger(__name__)


class Succession:
    """The office, its ledger side and its engine side together."""

    def __init__(self, deps: ServeDeps, desk: Desk, loader: Loader) -> None:
        self._deps = deps
        self._desk = desk
        self._loader = loader
        self._behind_since: float | None = None

    async def install(
        self,
        name: str | None,
        before: ReleaseState | None,
        reason: str,
        actor: str,
        *,
        leaving: ReleaseState = ReleaseState.RETIRED,
        figures: dict[str, float] | None = None,
        old: str | None = None,
    ) -> None:
        """Put an adapter that has been brought up (None: the base) in the office-holder's place.

        Args:
            leaving: what becomes of the present office-holder.
            old: that one, where it never came into office here.
        """
        old = old or self._deps.office.holder
        changes = []
        if name is not None:
            changes.append(change(name, before, ReleaseState.IN_OFFICE, reason, actor, figures=figures))
        if old is not None:
            text = f"succeeded by {name or 'the base'}: {reason}"
            changes.append(change(old, ReleaseState.IN_OFFICE, leaving, text, actor, figures=figures))
        await self._desk.record(*changes)
        self._switch(name)
        await self._loader.unload_the_rest()

    async def step_back(
        self, reason: str, actor: str, *, leaving: ReleaseState, figures: dict[str, float] | None = None
    ) -> str | None:
        """Whoever of the former office-holders still proves itself takes over; at the bottom lies the base."""
        stack = told.office_stack(await self._desk.history())
        for name in reversed(stack[:-1]):
            try:
                if name not in self._deps.engine.adapters():
                    await self._loader.bring_up(name)
            except REFUSALS as error:
                await self.reject(name, ReleaseState.RETIRED, f"rollback refused: {error}", AUTO)
                continue
            await self.install(name, ReleaseState.RETIRED, reason, actor, leaving=leaving, figures=figures)
            return name
        await self.install(None, None, reason, actor, leaving=leaving, figures=figures)
        return None

    async def depose(self, holder: str, reason: str, actor: str) -> None:
        """Reject an office-holder that this serving couldn't follow; the next that can be had here takes over."""
        for name in reversed(told.office_stack(await self._desk.history())[:-1]):
            try:
                await self._loader.bring_up(name)
            except (*REFUSALS, NotHere) as error:
                log.warning("not called back", adapter=name, reason=str(error))
                continue
            successor: str | None = name
            break
        else:
            successor = None
        leaving = ReleaseState.REJECTED
        await self.install(successor, ReleaseState.RETIRED, reason, actor, leaving=leaving, old=holder)
        self._level()

    async def reject(
        self,
        name: str,
        before: ReleaseState,
        reason: str,
        actor: str,
        *,
        after: ReleaseState = ReleaseState.REJECTED,
        figures: dict[str, float] | None = None,
    ) -> None:
        """Take an adapter that isn't in office out of the race."""
        await self._desk.record(change(name, before, after, reason, actor, figures=figures))
        self._deps.office.withdraw(name)
        if name in self._deps.engine.adapters():
            await self._loader.unload_the_rest()

    async def restore(self) -> None:
        """Office-holders by turns, the last first, until one can be loaded and proves itself; else the base.

        One that this serving alone can't have stays in office; the serving isn't ready until it can, or is told.
        """
        holder = await self._desk.office()
        while holder is not None:
            try:
                await self._loader.bring_up(holder)
            except NotHere as error:
                self._lag()
                self._fall_behind(holder, str(error))
                return
            except REFUSALS as error:
                holder = await self._fall_back(holder, f"could not be restored: {error}")
                continue
            break
        self._switch(holder)
        log.info("office restored", office=holder or "base")

    async def follow(self) -> None:
        """Do here what another serving has decided, if it has: load and probe first, then switch.

        Until then people are served by the former office-holder. If the new one can't be loaded here at all, or not for
        `follow_grace_s`, this serving isn't ready: it must not go on with another adapter than all the others.

        Raises:
            EngineError: not possible now; look again later.
        """
        wanted = await self._desk.office()
        if wanted == self._deps.office.holder:
            self._level()
            return
        lagging_s = self._lag()
        try:
            if wanted is not None:
                await self._loader.bring_up(wanted)
        except REFUSALS as error:
            self._fall_behind(wanted, str(error))
            return
        except EngineError as error:
            if lagging_s >= self._deps.config.releases.follow_grace_s or self._deps.readiness.behind:
                self._fall_behind(wanted, str(error))
                if isinstance(error, NotHere):  # no passing trouble: who mends it must get through
                    return
            raise
        log.info("office followed", before=self._deps.office.holder or "base", after=wanted or "base")
        self._switch(wanted)
        self._level()
        await self._loader.unload_the_rest()

    def watch(self, history: list[ReleaseChanged], *, watched: bool) -> None:
        """Let the office-holder meet its predecessor in a share of the pairs, or no longer."""
        stack = told.office_stack(history)
        predecessor = stack[-2] if len(stack) > 1 else None
        there = predecessor is None or predecessor in self._deps.engine.adapters()
        watched = watched and there and stack[-1:] == [self._deps.office.holder]
        self._deps.office.set_predecessors((predecessor,) if watched else ())

    def _switch(self, name: str | None) -> None:
        office = self._deps.office
        office.set_predecessors(())
        office.set_canaries(tuple(canary for canary in office.canaries if canary != name))
        office.switch(name)
        self._deps.metrics.office_number.set(int(name.rpartition("-")[2]) if name else 0)

    def _lag(self) -> float:
        """Seconds for which another has been in office by the ledger than here."""
        self._deps.metrics.release_behind.set(1)
        now = time.monotonic()
        self._behind_since = self._behind_since or now
        return now - self._behind_since

    def _level(self) -> None:
        if self._behind_since is not None:
            self._deps.readiness.set_behind(None)
            self._behind_since = None
        self._deps.metrics.release_behind.set(0)

    def _fall_behind(self, wanted: str | None, reason: str) -> None:
        told_so = f"{wanted} is in office and can't be loaded here: {reason}"
        if told_so != self._deps.readiness.behind:  # once, not at every look
            log.error("the adapter in office can't be loaded here", adapter=wanted, reason=reason)
        self._deps.readiness.set_behind(told_so)

    async def _fall_back(self, failed: str, reason: str) -> str | None:
        """Reject an office-holder in the ledger; the one before takes over there, and its name (None: base) returns."""
        stack = [name for name in told.office_stack(await self._desk.history()) if name != failed]
        changes = [change(failed, ReleaseState.IN_OFFICE, ReleaseState.REJECTED, reason, AUTO)]
        if stack:
            changes.insert(0, change(stack[-1], ReleaseState.RETIRED, ReleaseState.IN_OFFICE, f"{failed} failed", AUTO))
        await self._desk.record(*changes)
        return stack[-1] if stack else None
