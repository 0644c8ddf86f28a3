"""The one place that changes who is in office. Everything here runs on the event loop, one change after another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from feedback.contracts import AdapterPublished, GateChanged, ReleaseState
from feedback.ledger import LedgerUnavailable, Release, ReleaseConflict
from serve.deps import ServeDeps, on_thread
from serve.engines.base import EngineError
from serve.errors import Conflict
from serve.releases import history as told
from serve.releases.desk import AUTO, OPERATOR, Desk, change
from serve.releases.election import Election
from serve.releases.loader import REFUSALS, Loader
from serve.releases.store import AdapterStore
from serve.releases.succession import Succession

SCAN_S = 30.0
BREATH_S = 0.2
"""Seconds between two looks at the votes at least."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Heard:
    name: str
    manifest_sha256: str | None
    at: float


class ReleaseManager:
    """Takes adapters in, holds elections, switches, rolls back.

    `start` restores the office; `hear`, `look`, `stir` may be called by any thread.
    """

    def __init__(self, deps: ServeDeps) -> None:
        self._deps = deps
        self._store = AdapterStore(deps.paths.adapters)
        self._lock = asyncio.Lock()
        self._desk = Desk(deps)
        self._loader = Loader(deps, self._desk, self._store, self._lock)
        self._succession = Succession(deps, self._desk, self._loader)
        self.election = Election(deps, self._desk, self._loader, self._succession)
        self._inbox: asyncio.Queue[_Heard | None] = asyncio.Queue()
        self._stirred = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._announced: dict[str, str] = {}

    # Life

    async def start(self) -> None:
        """Load and probe who was in office when serving stopped, then take in what has come since.

        Raises:
            EngineUnavailable: the engine died meanwhile.
            LedgerUnavailable: the ledger can't be read.
        """
        self._loop = asyncio.get_running_loop()
        async with self._lock:
            await self._succession.restore()
        self._inbox.put_nowait(None)
        self._tasks = [
            asyncio.create_task(self._take_in(), name="release-manager"),
            asyncio.create_task(self._keep_up(), name="release-election"),
        ]

    async def close(self) -> None:
        """Stop taking in; who is in office stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._loader.close()

    def hear(self, event: AdapterPublished) -> None:
        """An adapter was announced. Safe from any thread."""
        self._post(_Heard(event.name, event.manifest_sha256, time.monotonic()))

    def look(self) -> None:
        """Look through the folder for what was published while nobody listened. Safe from any thread."""
        self._post(None)

    def stir(self) -> None:
        """There is a vote, or another serving has decided something: look soon. Safe from any thread."""
        if self._loop is not None and not self._stirred.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stirred.set)  # one that is set already is cleared before the look

    async def settled(self) -> None:
        """Return once everything heard so far is dealt with."""
        await self._inbox.join()

    async def keep_up(self) -> None:
        """Follow the other servings and look at the votes, now."""
        async with self._lock:
            await self._succession.follow()
            await self.election.look(self._announced)

    def _post(self, item: _Heard | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)

    async def _keep_up(self) -> None:
        config = self._deps.config.releases
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(config.canary.look_s):
                    await self._stirred.wait()
            self._stirred.clear()
            async with self._put_off_by_trouble("look at the releases"):
                await self.keep_up()
            await asyncio.sleep(BREATH_S)

    async def _take_in(self) -> None:
        while True:
            item, posted = None, False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SCAN_S):
                    item, posted = await self._inbox.get(), True
            try:
                async with self._put_off_by_trouble("release", adapter=item.name if item else None):
                    await self._take(item)
            finally:
                if posted:
                    self._inbox.task_done()

    async def _take(self, item: _Heard | None) -> None:
        if item is not None:
            self._announced.setdefault(item.name, item.manifest_sha256 or "")
            await self._consider(item)
            return
        for name in await on_thread(self._store.names):
            async with self._put_off_by_trouble("release", adapter=name):  # trouble with one is none with the next
                await self._consider(_Heard(name, self._announced.get(name), time.monotonic()))

    @asynccontextmanager
    async def _put_off_by_trouble(self, what: str, **about: str | None) -> AsyncIterator[None]:
        """Trouble inside puts off what was at hand for `retry_s`, and is counted; the task goes on with the next.

        Nothing is lost by it: an adapter stays a candidate, and the next look finds it again.
        """
        try:
            yield
            return
        except ReleaseConflict as error:
            self._lost_to_another(error)
            return
        except (EngineError, LedgerUnavailable) as error:
            log.warning(f"{what} put off", reason=str(error), **about)
            self._deps.metrics.release_put_off.labels("unavailable").inc()
        except Exception:  # no defect that one adapter brings to light may end the loop; counted, traced
            log.exception(f"{what} put off by a defect", **about)
            self._deps.metrics.release_put_off.labels("defect").inc()
        await asyncio.sleep(self._deps.config.releases.retry_s)

    def _lost_to_another(self, error: ReleaseConflict) -> None:
        log.info("another serving was first", reason=str(error))
        self._deps.metrics.release_conflicts.inc()
        self._stirred.set()

    # Taking in

    async def _consider(self, heard: _Heard) -> None:
        gate = self._deps.config.releases.gate
        async with self._lock:
            known = await self._desk.release(heard.name)
            open_states = {ReleaseState.CANDIDATE} | ({ReleaseState.VERIFIED} if gate == "probes" else set())
            if known is not None and known.state not in open_states:
                return
            if known is None:
                await self._desk.record(change(heard.name, None, ReleaseState.CANDIDATE, "published", AUTO))
            if gate == "votes" or (gate == "probes" and told.paused(await self._desk.gate())):
                self._stirred.set()
                return
            newer = told.newest_office_holder(await self._desk.history())
            if newer is not None and newer > heard.name:
                state = known.state if known else ReleaseState.CANDIDATE
                reason = f"superseded: {newer} has been in office"
                await self._succession.reject(heard.name, state, reason, AUTO, after=ReleaseState.RETIRED)
                return
            await self._admit(heard, known)

    async def _admit(self, heard: _Heard, known: Release | None) -> None:
        before = known.state if known else ReleaseState.CANDIDATE
        try:
            brought = await self._loader.bring_up(heard.name, heard.manifest_sha256)
        except REFUSALS as error:
            await self._succession.reject(heard.name, before, str(error), AUTO)
            return
        if before is not ReleaseState.VERIFIED:
            verified = change(heard.name, before, ReleaseState.VERIFIED, f"probe passed: {brought.report}", AUTO)
            await self._desk.record(verified, manifest=brought.stored.manifest)
        if self._deps.config.releases.gate == "probes":
            await self._succession.install(heard.name, ReleaseState.VERIFIED, "verified", AUTO)
            self._deps.metrics.release_seconds.observe(time.monotonic() - heard.at)
        else:  # of those that wait for an operator the newest stays loaded: the trainer needs a place too
            await self._loader.unload_the_rest()

    # Operators

    async def promote(self, name: str, reason: str, actor: str = OPERATOR) -> None:
        """Put an adapter into office; it is verified and probed again first.

        Raises:
            NotFound: no release has this name.
            Conflict: it is in office, or it fails its probe.
        """
        async with self._acting():
            release = await self._desk.known(name)
            if name == self._deps.office.holder:
                raise Conflict(f"{name} is in office already.")
            try:
                brought = await self._loader.bring_up(name)
            except REFUSALS as error:
                await self._succession.reject(name, release.state, str(error), actor)
                raise Conflict(f"{name} was not promoted: {error}.") from error
            before = release.state
            if release.manifest is None:
                verified = change(name, before, ReleaseState.VERIFIED, "probe passed", actor)
                await self._desk.record(verified, manifest=brought.stored.manifest)
                before = ReleaseState.VERIFIED
            await self._succession.install(name, before, reason, actor)

    async def reject(self, name: str, reason: str, actor: str = OPERATOR) -> None:
        """Reject an adapter for good; if it is in office, the one before takes over.

        Raises:
            NotFound: no release has this name.
            Conflict: it is rejected already.
        """
        async with self._acting():
            release = await self._desk.known(name)
            if release.state is ReleaseState.REJECTED:
                raise Conflict(f"{name} is rejected already: {release.reason}.")
            if name == self._deps.office.holder:
                await self._succession.step_back(reason, actor, leaving=ReleaseState.REJECTED)
            elif release.state is ReleaseState.IN_OFFICE:
                await self._succession.depose(name, reason, actor)
            else:
                await self._succession.reject(name, release.state, reason, actor)

    async def rollback(self, reason: str, actor: str = OPERATOR) -> str | None:
        """Put the previous office-holder, or the base, back; returns its name.

        Raises:
            Conflict: the base is in office.
        """
        async with self._acting():
            if self._deps.office.holder is None:
                raise Conflict("The base is in office; there is nothing to roll back to.")
            return await self._succession.step_back(reason, actor, leaving=ReleaseState.RETIRED)

    async def pause(self, paused: bool, reason: str, actor: str = OPERATOR) -> None:
        """Stop taking adapters into canary or office by itself, or go on; operators' acts and the alarm go on.

        Raises:
            Conflict: it is so already.
        """
        async with self._acting():
            if told.paused(await self._desk.gate()) == paused:
                raise Conflict("Releases are paused already." if paused else "Releases aren't paused.")
            await self._desk.record_gate(GateChanged(paused=paused, reason=reason, actor=actor))
        self._inbox.put_nowait(None)

    @asynccontextmanager
    async def _acting(self) -> AsyncIterator[None]:
        """An operator's act, alone, and level with the other servings."""
        async with self._lock:
            try:
                await self._succession.follow()
                yield
            except ReleaseConflict as error:
                raise Conflict(f"{error}.") from error
        self._stirred.set()
