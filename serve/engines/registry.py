"""Which adapters an engine holds, who is using them, and what weights a name stands for. Knows no engine."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from feedback.fingerprint import ADAPTER_FILES, content_digest
from serve.engines.base import AdapterLoadFailed, AdapterNotLoaded, NoRoomForAdapter

WEIGHTS_FILE = ADAPTER_FILES[-1]


@dataclass(slots=True)
class HeldAdapter:
    """An adapter in the engine.

    Attributes:
        number: the engine's integer id; fresh for every load, so no cache can confuse two loads.
        users: requests that run on it now.
        usable: False from the moment an unload is asked for.
    """

    name: str
    number: int
    path: Path
    digest: str
    users: int = 0
    usable: bool = True
    idle: asyncio.Event = field(default_factory=asyncio.Event)


def folder_digest(path: Path) -> str:
    """Sha256 over an adapter folder's configuration and weights.

    Raises:
        AdapterLoadFailed: the folder isn't one that we take: safetensors only (other formats can run code), and nothing
            for the output head or the embedding (vLLM can't tell whose head to use when it scores a prompt in a batch).
    """
    contents = []
    for name in ADAPTER_FILES:
        try:
            contents.append((path / name).read_bytes())
        except OSError as error:
            raise AdapterLoadFailed(f"adapter folder {path.name}: can't read {name}: {error.strerror}") from error
    refused = sorted(name for name in tensor_names(contents[-1]) if "lm_head" in name or "embed_tokens" in name)
    if refused:
        raise AdapterLoadFailed(
            f"adapter folder {path.name}: {refused[0]} adapts the head or the embedding; not served"
        )
    return content_digest(contents)


def tensor_names(content: bytes) -> frozenset[str]:
    """Names in a safetensors file's header.

    Raises:
        AdapterLoadFailed: the header can't be read.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return frozenset(header) - {"__metadata__"}
    except (ValueError, TypeError) as error:
        raise AdapterLoadFailed(f"{WEIGHTS_FILE} is not a safetensors file") from error


class AdapterRegistry:
    """Names, numbers and users of the adapters of one engine. One event loop uses it; other threads ask who is there.

    For these, what is gone through is a copy, made at once: the dictionary may change under them.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._numbers = itertools.count(1)
        self._held: dict[str, HeldAdapter] = {}
        self._digests: dict[str, str] = {}

    def names(self) -> frozenset[str]:
        """Names that a request may use now."""
        return frozenset(name for name, held in list(self._held.items()) if held.usable)

    def by_adapter(self) -> dict[str, int]:
        """Requests now running on each adapter that has any."""
        return {name: held.users for name, held in list(self._held.items()) if held.users}

    def find(self, name: str) -> HeldAdapter | None:
        """The adapter, usable or draining."""
        return self._held.get(name)

    def plan(self, name: str, path: Path, digest: str) -> HeldAdapter | None:
        """A new entry to load and then `admit`; None where just these weights are there already.

        Raises:
            AdapterLoadFailed: the name stood for other weights.
            NoRoomForAdapter: it is being unloaded, or all places are taken.
        """
        if self._digests.get(name, digest) != digest:
            raise AdapterLoadFailed(f"{name} was loaded with other weights before; publish them under a new name")
        held = self._held.get(name)
        if held is not None and held.usable:
            return None
        if held is not None:
            raise NoRoomForAdapter(f"{name} is being unloaded; try again when its last stream has ended")
        if len(self._held) >= self._capacity:
            loaded = ", ".join(sorted(self._held))
            raise NoRoomForAdapter(
                f"no room for {name}: {self._capacity} adapters are loaded ({loaded}); "
                "unload one or raise serve.max_loras"
            )
        return HeldAdapter(name, next(self._numbers), path.absolute(), digest)

    def admit(self, adapter: HeldAdapter) -> None:
        """The engine has loaded it: requests may use it."""
        self._digests[adapter.name] = adapter.digest
        self._held[adapter.name] = adapter

    @contextmanager
    def use(self, name: str | None) -> Iterator[HeldAdapter | None]:
        """Hold an adapter for a request, so that it stays until the request ends. None is the base.

        Raises:
            AdapterNotLoaded: no such adapter, or it is being unloaded.
        """
        if name is None:
            yield None
            return
        held = self._held.get(name)
        if held is None or not held.usable:
            raise AdapterNotLoaded(f"adapter {name!r} is not loaded here")
        held.users += 1
        try:
            yield held
        finally:
            held.users -= 1
            if held.users == 0:
                held.idle.set()

    async def drain(self, name: str) -> HeldAdapter | None:
        """Close an adapter to new requests and wait for its last one to end; None for an unknown name."""
        held = self._held.get(name)
        if held is None:
            return None
        held.usable = False
        while held.users:
            held.idle.clear()
            await held.idle.wait()
        return held

    def forget(self, adapter: HeldAdapter) -> None:
        """The engine has freed it. Its name keeps its weights."""
        if self._held.get(adapter.name) is adapter:
            del self._held[adapter.name]
