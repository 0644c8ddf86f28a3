"""Adapters into the engine and out of it: verified and probed on the way in, after their last stream on the way out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from feedback.contracts import ReleaseChanged
from feedback.ledger import LedgerUnavailable
from serve.deps import ServeDeps, on_thread
from serve.engines.base import AdapterLoadFailed, EngineError
from serve.releases import history as told
from serve.releases.desk import Desk
from serve.releases.errors import NotHere, ReleaseRefused, Unsuited
from serve.releases.probe import ProbeReport, judge, probe
from serve.releases.store import AdapterStore, StoredAdapter

REFUSALS = (ReleaseRefused, AdapterLoadFailed)
"""What is wrong with the adapter itself; all else is passing trouble."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BroughtUp:
    """An adapter that is loaded and has proved itself."""

    stored: StoredAdapter
    report: ProbeReport


class Loader:
    """Loads and unloads published adapters.

    Args:
        lock: the release manager's; held by whoever calls, and taken by what happens later.
    """

    def __init__(self, deps: ServeDeps, desk: Desk, store: AdapterStore, lock: asyncio.Lock) -> None:
        self._deps = deps
        self._desk = desk
        self._store = store
        self._lock = lock
        self._drains: set[asyncio.Task[None]] = set()

    async def bring_up(self, name: str, manifest_sha256: str | None = None) -> BroughtUp:
        """Verify, load beside the incumbent, probe. What fails is unloaded again, unless it was loaded before.

        People may be talking to that one: whoever takes it out of the race unloads it after their last stream.

        Raises:
            ReleaseRefused, AdapterLoadFailed: something is wrong with the adapter itself.
            NotHere: it doesn't fit this serving, which is one of several.
            EngineError: the engine can't do it now.
        """
        deps = self._deps
        stored = await self._verified(name, manifest_sha256)
        fresh = name not in deps.engine.adapters()
        if fresh:
            await self._make_room()
            await deps.engine.load_adapter(name, stored.path)
        try:
            report = await probe(deps.engine, name, stored.manifest.probes)
            judge(report, deps.config.releases)
        except BaseException:
            if fresh:
                await self._unload(name)
            raise
        log.info("adapter verified", adapter=name, probe=str(report))
        return BroughtUp(stored, report)

    async def _verified(self, name: str, manifest_sha256: str | None) -> StoredAdapter:
        deps = self._deps
        fingerprint = await on_thread(deps.base_fingerprint)
        try:
            return await on_thread(
                self._store.verify,
                name,
                manifest_sha256=manifest_sha256,
                base_fingerprint=fingerprint,
                max_rank=deps.engine.info.max_lora_rank,
            )
        except Unsuited as error:
            if deps.ledger.shared:  # a missing mount or a wrong --model here must not decide for all
                raise NotHere(str(error)) from error
            raise

    async def unload_the_rest(self) -> None:
        """Unload, each after its last stream, whoever is not in office, to be called back soon, or on the way there."""
        keep = self._keep(await self._desk.history())
        for name in self._deps.engine.adapters():
            if name.startswith("policy-") and name not in keep:
                task = asyncio.create_task(self._drain(name), name=f"drain-{name}")
                self._drains.add(task)
                task.add_done_callback(self._drains.discard)

    async def close(self) -> None:
        """Stop waiting for last streams."""
        tasks = list(self._drains)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make_room(self) -> None:
        """Unload who idles until one more fits: those that never held office first, then former holders, the oldest."""
        deps = self._deps
        needed = {deps.office.holder, *deps.office.canaries}
        idle = [name for name in deps.engine.adapters() if name.startswith("policy-") and name not in needed]
        former = set(told.office_stack(await self._desk.history()))
        for name in sorted(idle, key=lambda name: (name in former, name)):
            if len(deps.engine.adapters()) < deps.config.max_loras:
                return
            if not deps.office.in_use(name):
                await self._unload(name)

    def _keep(self, history: list[ReleaseChanged]) -> set[str]:
        config = self._deps.config.releases
        wanted = 2 if config.keep_previous or config.gate == "votes" else 1
        names = {*told.office_stack(history)[-wanted:], told.canary(history), self._deps.office.holder}
        if config.gate == "operator":  # who wants to look first asks for it by name
            names.add(told.verified(history))
        return {name for name in names if name is not None}

    async def _drain(self, name: str) -> None:
        """Unload an adapter after its last request; unless it was called back meanwhile. Trouble puts it off."""
        while True:
            await self._deps.office.idle(name)
            try:
                async with self._lock:
                    if name not in self._keep(await self._desk.history()) and not self._deps.office.in_use(name):
                        await self._unload(name)
                        log.info("adapter unloaded", adapter=name)
                return
            except (EngineError, LedgerUnavailable) as error:
                log.warning("adapter can't be unloaded now", adapter=name, reason=str(error))
            await asyncio.sleep(self._deps.config.releases.retry_s)  # nobody tells when ledger or engine are back

    async def _unload(self, name: str) -> None:
        """Free an adapter that nobody uses; no pair may draw it any more, for it would find it gone."""
        self._deps.office.withdraw(name)
        await self._deps.engine.unload_adapter(name)
