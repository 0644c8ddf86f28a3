"""The one place that changes who is in office. Everything here runs on the event loop, one change after another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from feedback.contracts import AdapterPublished, ReleaseChanged, ReleaseState
from feedback.ledger import LedgerUnavailable, Release
from serve.deps import ServeDeps, on_thread
from serve.engines.base import AdapterLoadFailed, EngineError
from serve.errors import Conflict, NotFound
from serve.releases.errors import ReleaseRefused
from serve.releases.probe import ProbeReport, judge, probe
from serve.releases.store import AdapterStore, StoredAdapter

AUTO = "auto"
OPERATOR = "operator"
SCAN_S = 30.0
_REFUSALS = (ReleaseRefused, AdapterLoadFailed)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Heard:
    name: str
    manifest_sha256: str | None
    at: float


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


class ReleaseManager:
    """Takes adapters in, switches, rolls back. `start` restores the office; `hear` may be called by any thread."""

    def __init__(self, deps: ServeDeps) -> None:
        self._deps = deps
        self._store = AdapterStore(deps.paths.adapters)
        self._lock = asyncio.Lock()
        self._inbox: asyncio.Queue[_Heard | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()
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
            await self._restore()
        self._inbox.put_nowait(None)
        self._task = asyncio.create_task(self._run(), name="release-manager")

    async def close(self) -> None:
        """Stop taking in; who is in office stays."""
        tasks = [task for task in (self._task, *self._drains) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def hear(self, event: AdapterPublished) -> None:
        """An adapter was announced. Safe from any thread."""
        self._post(_Heard(event.name, event.manifest_sha256, time.monotonic()))

    def look(self) -> None:
        """Look through the folder for what was published while nobody listened. Safe from any thread."""
        self._post(None)

    async def settled(self) -> None:
        """Return once everything heard so far is dealt with."""
        await self._inbox.join()

    def _post(self, item: _Heard | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)

    async def _run(self) -> None:
        while True:
            item, posted = None, False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SCAN_S):
                    item, posted = await self._inbox.get(), True
            try:
                await self._take(item)
            except (EngineError, LedgerUnavailable) as error:
                # Nothing is lost: the adapter stays a candidate, and the next look finds it again.
                log.warning("release put off", adapter=item and item.name, reason=str(error))
                await asyncio.sleep(self._deps.config.releases.retry_s)
            except Exception:
                # A defect that one adapter brings to light must not keep all later ones out, nor stop the chat.
                log.exception("release put off by a defect", adapter=item and item.name)
                await asyncio.sleep(self._deps.config.releases.retry_s)
            finally:
                if posted:
                    self._inbox.task_done()

    async def _take(self, item: _Heard | None) -> None:
        if item is not None:
            self._announced.setdefault(item.name, item.manifest_sha256 or "")
            await self._consider(item)
            return
        for name in await on_thread(self._store.names):
            await self._consider(_Heard(name, self._announced.get(name), time.monotonic()))

    # Taking in

    async def _consider(self, heard: _Heard) -> None:
        async with self._lock:
            known = await on_thread(self._deps.ledger.release, heard.name)
            auto = self._deps.config.releases.auto_promote
            open_states = {ReleaseState.CANDIDATE} | ({ReleaseState.VERIFIED} if auto else set())
            if known is not None and known.state not in open_states:
                return
            if known is None:
                await self._record(self._change(heard.name, None, ReleaseState.CANDIDATE, "published", AUTO))
            newer = await self._newer_office_holder(heard.name)
            if newer is not None:
                reason = f"superseded: {newer} has been in office"
                state = known.state if known else ReleaseState.CANDIDATE
                await self._record(self._change(heard.name, state, ReleaseState.RETIRED, reason, AUTO))
                return
            await self._admit(heard, known)

    async def _admit(self, heard: _Heard, known: Release | None) -> None:
        before = known.state if known else ReleaseState.CANDIDATE
        try:
            stored, report = await self._bring_up(heard.name, heard.manifest_sha256)
        except _REFUSALS as error:
            await self._reject(heard.name, before, str(error), AUTO)
            return
        if before is not ReleaseState.VERIFIED:
            change = self._change(heard.name, before, ReleaseState.VERIFIED, f"probe passed: {report}", AUTO)
            await on_thread(self._deps.ledger.record_release, change, stored.manifest)
            self._count(change)
        if self._deps.config.releases.auto_promote:
            await self._install(heard.name, ReleaseState.VERIFIED, "verified", AUTO)
            self._deps.metrics.release_seconds.observe(time.monotonic() - heard.at)

    async def _bring_up(self, name: str, manifest_sha256: str | None = None) -> tuple[StoredAdapter, ProbeReport]:
        """Verify, load beside the incumbent, probe; what fails is unloaded again."""
        deps = self._deps
        fingerprint = await on_thread(deps.base_fingerprint)
        stored = await on_thread(
            self._store.verify,
            name,
            manifest_sha256=manifest_sha256,
            base_fingerprint=fingerprint,
            max_rank=deps.engine.info.max_lora_rank,
        )
        if name not in deps.engine.adapters():
            await self._make_room()
            await deps.engine.load_adapter(name, stored.path)
        try:
            report = await probe(deps.engine, name, stored.manifest.probes)
            judge(report, deps.config.releases)
        except BaseException:
            await deps.engine.unload_adapter(name)
            raise
        log.info("adapter verified", adapter=name, probe=str(report))
        return stored, report

    async def _make_room(self) -> None:
        """Unload idle former office-holders, the oldest first, until one more adapter fits."""
        deps = self._deps
        loaded = deps.engine.adapters()
        idle = sorted(n for n in loaded if n.startswith("policy-") and n != deps.office.holder)
        for name in idle:
            if len(deps.engine.adapters()) < deps.config.max_loras:
                return
            if not deps.office.in_use(name):
                await deps.engine.unload_adapter(name)

    # Office

    async def _restore(self) -> None:
        """Office-holders by turns, the last first, until one can be loaded and proves itself; else the base."""
        deps = self._deps
        holder = await on_thread(deps.ledger.office)
        while holder is not None:
            try:
                await self._bring_up(holder)
            except _REFUSALS as error:
                holder = await self._fall_back(holder, f"could not be restored: {error}")
                continue
            break
        self._switch(holder)
        log.info("office restored", office=holder or "base")

    async def _fall_back(self, failed: str, reason: str) -> str | None:
        """Reject an office-holder in the ledger; the one before takes over there, and its name (None: base) returns."""
        history = await on_thread(self._deps.ledger.release_history)
        stack = [name for name in office_stack(history) if name != failed]
        changes = [self._change(failed, ReleaseState.IN_OFFICE, ReleaseState.REJECTED, reason, AUTO)]
        if stack:
            changes.insert(
                0, self._change(stack[-1], ReleaseState.RETIRED, ReleaseState.IN_OFFICE, f"{failed} failed", AUTO)
            )
        await self._record(*changes)
        return stack[-1] if stack else None

    async def _install(
        self,
        name: str | None,
        before: ReleaseState | None,
        reason: str,
        actor: str,
        *,
        leaving: ReleaseState = ReleaseState.RETIRED,
    ) -> None:
        """Ledger first, in one transaction; then the switch, one assignment; then what nobody needs is unloaded."""
        old = self._deps.office.holder
        changes = []
        if name is not None:
            changes.append(self._change(name, before, ReleaseState.IN_OFFICE, reason, actor))
        if old is not None:
            text = f"succeeded by {name or 'the base'}: {reason}"
            changes.append(self._change(old, ReleaseState.IN_OFFICE, leaving, text, actor))
        await self._record(*changes)
        self._switch(name)
        log.info("office changed", before=old or "base", after=name or "base", reason=reason, actor=actor)
        await self._unload_the_rest()

    def _switch(self, name: str | None) -> None:
        self._deps.office.switch(name)
        self._deps.metrics.office_number.set(int(name.rpartition("-")[2]) if name else 0)

    async def _unload_the_rest(self) -> None:
        keep = await self._keep()
        for name in self._deps.engine.adapters():
            if name.startswith("policy-") and name not in keep:
                task = asyncio.create_task(self._drain(name), name=f"drain-{name}")
                self._drains.add(task)
                task.add_done_callback(self._drains.discard)

    async def _keep(self) -> set[str]:
        history = await on_thread(self._deps.ledger.release_history)
        wanted = 2 if self._deps.config.releases.keep_previous else 1
        return {*office_stack(history)[-wanted:], *self._deps.office.canaries}

    async def _drain(self, name: str) -> None:
        """Unload an adapter after its last request; unless it was called back meanwhile."""
        await self._deps.office.idle(name)
        async with self._lock:
            if name not in await self._keep() and not self._deps.office.in_use(name):
                await self._deps.engine.unload_adapter(name)
                log.info("adapter unloaded", adapter=name)

    # Operators

    async def promote(self, name: str, reason: str) -> None:
        """Put an adapter into office; it is verified and probed again first.

        Raises:
            NotFound: no release has this name.
            Conflict: it is in office, or it fails its probe.
        """
        async with self._lock:
            release = await self._known(name)
            if name == self._deps.office.holder:
                raise Conflict(f"{name} is in office already.")
            try:
                stored, _ = await self._bring_up(name)
            except _REFUSALS as error:
                await self._reject(name, release.state, str(error), OPERATOR)
                raise Conflict(f"{name} was not promoted: {error}.") from error
            if release.manifest is None:
                verified = self._change(name, release.state, ReleaseState.VERIFIED, "probe passed", OPERATOR)
                await on_thread(self._deps.ledger.record_release, verified, stored.manifest)
                self._count(verified)
            await self._install(name, release.state, reason, OPERATOR)

    async def reject(self, name: str, reason: str) -> None:
        """Reject an adapter for good; if it is in office, the one before takes over.

        Raises:
            NotFound: no release has this name.
            Conflict: it is rejected already.
        """
        async with self._lock:
            release = await self._known(name)
            if release.state is ReleaseState.REJECTED:
                raise Conflict(f"{name} is rejected already: {release.reason}.")
            if name == self._deps.office.holder:
                await self._step_back(reason, leaving=ReleaseState.REJECTED)
            else:
                await self._reject(name, release.state, reason, OPERATOR)

    async def rollback(self, reason: str) -> str | None:
        """Put the previous office-holder, or the base, back; returns its name.

        Raises:
            Conflict: the base is in office.
        """
        async with self._lock:
            if self._deps.office.holder is None:
                raise Conflict("The base is in office; there is nothing to roll back to.")
            return await self._step_back(reason, leaving=ReleaseState.RETIRED)

    async def _step_back(self, reason: str, *, leaving: ReleaseState) -> str | None:
        """Whoever of the former office-holders still proves itself takes over; at the bottom lies the base."""
        stack = office_stack(await on_thread(self._deps.ledger.release_history))
        for name in reversed(stack[:-1]):
            try:
                if name not in self._deps.engine.adapters():
                    await self._bring_up(name)
            except _REFUSALS as error:
                await self._reject(name, ReleaseState.RETIRED, f"rollback refused: {error}", AUTO)
                continue
            await self._install(name, ReleaseState.RETIRED, reason, OPERATOR, leaving=leaving)
            return name
        await self._install(None, None, reason, OPERATOR, leaving=leaving)
        return None

    # Records

    async def _known(self, name: str) -> Release:
        release = await on_thread(self._deps.ledger.release, name)
        if release is None:
            raise NotFound(f"No release is called {name}; GET /v1/releases lists them.")
        return release

    async def _newer_office_holder(self, name: str) -> str | None:
        history = await on_thread(self._deps.ledger.release_history)
        held = [change.name for change in history if change.after is ReleaseState.IN_OFFICE]
        return max((other for other in held if other > name), default=None)

    async def _reject(self, name: str, before: ReleaseState, reason: str, actor: str) -> None:
        log.warning("adapter rejected", adapter=name, reason=reason, actor=actor)
        await self._record(self._change(name, before, ReleaseState.REJECTED, reason, actor))
        if name in self._deps.engine.adapters():
            await self._unload_the_rest()

    async def _record(self, *changes: ReleaseChanged) -> None:
        await on_thread(self._deps.ledger.record_releases, changes)
        for change in changes:
            self._count(change)

    def _count(self, change: ReleaseChanged) -> None:
        self._deps.metrics.release_changes.labels(change.after.value).inc()

    @staticmethod
    def _change(name: str, before: ReleaseState | None, after: ReleaseState, reason: str, actor: str) -> ReleaseChanged:
        return ReleaseChanged(name=name, before=before, after=after, reason=reason, actor=actor)
