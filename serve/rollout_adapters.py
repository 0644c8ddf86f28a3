"""Adapters that only the trainer samples from: loaded when first asked for, freed when nobody asks any more.

Whoever is asked loads: behind a load balancer the request that samples comes to another serving than the one that was
told to load. And whoever isn't asked frees: a trainer that was killed takes nothing back. One that is only slow finds
its adapter loaded again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import structlog

from feedback.fingerprint import adapter_digest
from serve.deps import ServeDeps, on_thread
from serve.engines.base import EngineError, NoRoomForAdapter
from serve.errors import BadRequest, Conflict, NotFound

ROLLOUT_NAME = r"^rollout-[0-9a-z-]{1,40}$"
ROLLOUT_PREFIX = "rollout-"
LOOK_S = 30.0
"""Seconds between looks for adapters that nobody asks for."""
_FILES = frozenset({".safetensors", ".json", ".md"})
log = structlog.get_logger(__name__)


class RolloutAdapters:
    """Loads and frees them, one after another, by names alone: their folders lie below the data folder.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, deps: ServeDeps, clock: Callable[[], float] = time.monotonic) -> None:
        self._deps = deps
        self._root = deps.paths.rollout_adapters
        self._clock = clock
        self._lock = asyncio.Lock()
        self._used: dict[str, float] = {}
        self._digests: dict[str, str] = {}

    @asynccontextmanager
    async def borrow(self, name: str, digest: str | None) -> AsyncIterator[None]:
        """Keep an adapter loaded until the block ends; one that isn't loaded here is.

        Args:
            digest: of the adapter that is meant (`adapter_digest`), where the caller tells it.

        Raises:
            BadRequest, NotFound, Conflict: see `load`.
            EngineError: the engine doesn't take it.
        """
        with ExitStack() as stack:
            async with self._lock:
                await self._load(name, digest)
                stack.enter_context(self._deps.office.borrow(name))
            try:
                yield
            finally:
                self._used[name] = self._clock()

    async def load(self, name: str, digest: str | None = None) -> bool:
        """Load an adapter; False where it was there.

        Raises:
            BadRequest: the name is none of ours, or its folder holds something that could run code.
            NotFound: there is no such folder here.
            Conflict: it is another adapter than is meant.
            EngineError: the engine doesn't take it.
        """
        async with self._lock:
            return await self._load(name, digest)

    async def unload(self, name: str) -> None:
        """Free an adapter after its last request; unknown names pass."""
        freed = False
        while not freed:
            await self._deps.office.idle(name)
            async with self._lock:
                freed = not self._deps.office.in_use(name)
                if freed:
                    await self._free(name)

    async def free_idle(self) -> None:
        """Free those that nobody has asked for `serve.rollout_idle_s`, or whose trainer has taken the folder away."""
        async with self._lock:
            await self._free_idle()

    async def watch(self) -> None:
        """Look after them until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.free_idle()
            except EngineError as error:
                log.warning("rollout adapters can't be freed now", reason=str(error))

    async def _load(self, name: str, digest: str | None) -> bool:
        if name in self._deps.engine.adapters():
            _require_same(name, digest, self._digests.get(name))
            return False
        folder = await on_thread(rollout_folder, self._root, name)
        found = await on_thread(_digest_of, folder)
        _require_same(name, digest, found)
        try:
            await self._deps.engine.load_adapter(name, folder)
        except NoRoomForAdapter:
            await self._free_idle()
            await self._deps.engine.load_adapter(name, folder)
        self._digests[name], self._used[name] = found, self._clock()
        return True

    async def _free_idle(self) -> None:
        loaded = [name for name in self._deps.engine.adapters() if name.startswith(ROLLOUT_PREFIX)]
        for name in loaded:
            since = self._clock() - self._used.setdefault(name, self._clock())
            if self._deps.office.in_use(name):
                continue
            gone = await on_thread(_gone, self._root / name)
            if gone or since >= self._deps.config.rollout_idle_s:
                await self._free(name)
                log.info("rollout adapter freed", adapter=name, seconds=round(since), folder_gone=gone)

    async def _free(self, name: str) -> None:
        await self._deps.engine.unload_adapter(name)
        self._used.pop(name, None)
        self._digests.pop(name, None)


def rollout_folder(root: Path, name: str) -> Path:
    """The adapter's folder, which lies directly below the root and holds no other kinds of files.

    Raises:
        BadRequest: the name is none of ours, or the folder holds something that could run code.
        NotFound: there is no such folder.
    """
    if re.fullmatch(ROLLOUT_NAME, name) is None:
        raise BadRequest("A rollout adapter's name is `rollout-` and up to 40 of 0-9, a-z and -.")
    folder = root / name
    if folder.is_symlink() or not folder.is_dir():
        raise NotFound(
            f"There is no folder {name} in train/rollout-adapters of this serving's data folder. Give the trainer and"
            ' every serving that it may reach one `data_dir`, or set train.rollout.source = "local".'
        )
    odd = [entry.name for entry in folder.iterdir() if entry.is_symlink() or entry.suffix not in _FILES]
    if odd:
        raise BadRequest(f"{name} holds {odd[0]}; only safetensors and JSON are taken.")
    return folder


def _gone(folder: Path) -> bool:
    """Whether it was taken away; a shared folder that is out of reach just now says nothing."""
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _digest_of(folder: Path) -> str:
    try:
        return adapter_digest(folder)
    except OSError as error:
        raise NotFound(
            f"{folder.name} can't be read here: {error.strerror}; save it whole before you name it."
        ) from None


def _require_same(name: str, wanted: str | None, found: str | None) -> None:
    """Pass where it is the one that is meant, as far as anybody has told.

    Raises:
        Conflict: it isn't.
    """
    if wanted is not None and wanted != found:
        raise Conflict(f"{name} is another adapter here than the trainer has saved; give each a name of its own.")
