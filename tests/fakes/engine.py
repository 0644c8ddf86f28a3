"""An engine without a model: it keeps the contract of `serve.engines.base`, deterministic and instant.

Answers are words chosen by a hash of prompt, adapter and seed; a token is a byte; a log-probability is a hash of the
adapter's weights, the id before and the id, so `generate` at
temperature 1 and `score` agree as they do in a real engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedback.contracts import Message
from serve.engines.base import (
    AdapterLoadFailed,
    AdapterNotLoaded,
    Chunk,
    Ending,
    EngineInfo,
    EngineLoad,
    EngineOverloaded,
    EngineUnavailable,
    GenerationRequest,
    InvalidSampling,
    NoRoomForAdapter,
    PromptTooLong,
    TopLogprob,
)

EOS = 256
WORDS = (
    "good",
    "bright",
    "slow",
    "answer",
    "river",
    "idea",
    "reason",
    "maybe",
    "never",
    "walk",
    "warm",
    "plain",
    "sure",
)

Answer = Callable[[GenerationRequest, int], str]


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class _Side:
    """One whole answer, made before the first token leaves."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    finish_reason: Ending


class FakeEngine:
    """Keeps `Engine`. Everything that a test may want to see or to break is an attribute.

    Attributes:
        requests: every request given to `generate`, in order.
        started: request ids in the order in which they got a slot.
        aborted: ids of requests whose iterator was closed before the end.
        finished: ids of requests that ran to their end.
        gate: while cleared, no token leaves; set by default.
        first_token_delay_s, token_delay_s: added before the first and before every token.
        fail_after: after so many tokens a stream raises `failure`; None for never.
        load_failure: raised by the next `load_adapter`, once.
    """

    def __init__(
        self,
        *,
        answer: Answer | None = None,
        adapters: Sequence[str] = (),
        max_model_len: int = 2048,
        max_running: int = 1_000_000,
        max_queue: int = 1_000_000,
        max_adapters: int = 1_000_000,
        words: int = 8,
        token_delay_s: float = 0.0,
        first_token_delay_s: float = 0.0,
    ) -> None:
        self._answer = answer or self._words
        self._weights: dict[str, str] = {name: name for name in adapters}
        self._usable: set[str] = set(adapters)
        self._ever: dict[str, str] = dict(self._weights)
        self._max_running = max_running
        self._max_queue = max_queue
        self._max_adapters = max_adapters
        self._word_count = words
        self._counter = itertools.count()
        self._running = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._by_adapter: Counter[str] = Counter()
        self._idle = asyncio.Condition()
        self._dead: str | None = "the engine has not been started"
        self._info = EngineInfo("fake", "0", "none", max_model_len, 64)
        self.token_delay_s = token_delay_s
        self.first_token_delay_s = first_token_delay_s
        self.gate = asyncio.Event()
        self.gate.set()
        self.requests: list[GenerationRequest] = []
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.finished: list[str] = []
        self.fail_after: int | None = None
        self.failure: Exception = EngineUnavailable("the engine died")
        self.load_failure: Exception | None = None
        self.closed = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def start(self) -> None:
        self._dead = None

    async def close(self) -> None:
        self.closed = True
        self.die("the engine is closed")

    def die(self, why: str = "the engine died") -> None:
        """From now on nothing works; streams that run raise at their next token."""
        self._dead = why
        self.gate.set()
        for _, _, slot in self._waiting:
            if not slot.done():
                slot.set_exception(EngineUnavailable(why))

    async def check_health(self) -> None:
        if self._dead is not None:
            raise EngineUnavailable(self._dead)

    async def tokenize(self, messages: Sequence[Message]) -> tuple[int, ...]:
        text = "".join(f"<{m.role}>{m.content}\n" for m in messages) + "<assistant>"
        return tuple(text.encode())

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        await self.check_health()
        self.requests.append(request)
        self._check(request)
        adapter = request.adapter or ""
        self._by_adapter[adapter] += 1
        ended = False
        try:
            await self._take_slot(request)
            try:
                async for chunk in self._stream(request):
                    yield chunk
                ended = True
            finally:
                self._free_slot()
        finally:
            (self.finished if ended else self.aborted).append(request.request_id)
            self._by_adapter[adapter] -= 1
            async with self._idle:
                self._idle.notify_all()

    async def score(self, token_ids: Sequence[int], adapter: str | None) -> tuple[float, ...]:
        await self.check_health()
        self._check_adapter(adapter)
        if len(token_ids) > self._info.max_model_len:
            raise PromptTooLong(f"{len(token_ids)} tokens, {self._info.max_model_len} fit")
        return tuple(self.logprob(adapter, a, b) for a, b in itertools.pairwise(token_ids))

    async def load_adapter(self, name: str, path: Path) -> None:
        await self.check_health()
        if self.load_failure is not None:
            failure, self.load_failure = self.load_failure, None
            raise failure
        weights = path / "adapter_model.safetensors"
        if not (path / "adapter_config.json").is_file() or not weights.is_file():
            raise AdapterLoadFailed(f"{name}: {path.name} is not an adapter folder")
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if self._ever.get(name, digest) != digest:
            raise AdapterLoadFailed(f"{name} was loaded with other weights before; publish under a new name")
        if name not in self._weights and len(self._weights) >= self._max_adapters:
            raise NoRoomForAdapter(f"no room for {name}: {self._max_adapters} adapters are loaded")
        self._ever[name] = self._weights[name] = digest
        self._usable.add(name)

    async def unload_adapter(self, name: str) -> None:
        self._usable.discard(name)
        async with self._idle:
            await self._idle.wait_for(lambda: self._by_adapter[name] == 0)
        if name not in self._usable:
            self._weights.pop(name, None)

    def adapters(self) -> frozenset[str]:
        return frozenset(self._usable)

    def load(self) -> EngineLoad:
        by_adapter = {name: count for name, count in self._by_adapter.items() if count}
        share = min(1.0, self._running / self._max_running)
        return EngineLoad(self._running, len(self._waiting), share, by_adapter)

    def logprob(self, adapter: str | None, before: int, token_id: int) -> float:
        """Between -4 and 0, by the adapter's weights (None: the base)."""
        weights = self._weights.get(adapter, adapter) if adapter else None
        return -(_hash(weights, before, token_id) % 4000 + 1) / 1000

    def _check(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        self._check_adapter(request.adapter)
        wanted = len(request.prompt_token_ids) + sampling.max_tokens
        if wanted > self._info.max_model_len:
            raise PromptTooLong(f"{wanted} tokens wanted, {self._info.max_model_len} fit")
        if sampling.max_tokens < 1 or not 0 < sampling.top_p <= 1 or sampling.temperature < 0 or sampling.n < 1:
            raise InvalidSampling(f"the engine refuses {sampling}")
        if len(self._waiting) >= self._max_queue:
            raise EngineOverloaded(f"{len(self._waiting)} requests wait already")

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._usable:
            raise AdapterNotLoaded(f"adapter {adapter!r} is not loaded")

    async def _take_slot(self, request: GenerationRequest) -> None:
        if self._running < self._max_running:
            self._running += 1
        else:
            slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (int(request.priority), next(self._counter), slot))
            try:
                await slot
            except asyncio.CancelledError:
                if slot.done() and not slot.cancelled():
                    self._free_slot()
                raise
            finally:
                self._waiting = [entry for entry in self._waiting if entry[2] is not slot]
                heapq.heapify(self._waiting)
        self.started.append(request.request_id)

    def _free_slot(self) -> None:
        """Hand the slot to who waits longest at the best priority; it stays counted as running."""
        while self._waiting:
            _, _, slot = heapq.heappop(self._waiting)
            if not slot.done():
                slot.set_result(None)
                return
        self._running -= 1

    async def _stream(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        sides = [self._side(request, index) for index in range(request.sampling.n)]
        await asyncio.sleep(self.first_token_delay_s)
        for step in range(max(len(side.token_ids) for side in sides)):
            for index, side in enumerate(sides):
                if step < len(side.token_ids):
                    await self._pace(step)
                    yield self._chunk(request, index, side, step)

    async def _pace(self, step: int) -> None:
        await asyncio.sleep(self.token_delay_s)
        await self.gate.wait()
        if self.fail_after is not None and step >= self.fail_after:
            raise self.failure
        await self.check_health()

    def _side(self, request: GenerationRequest, index: int) -> _Side:
        sampling = request.sampling
        text = self._answer(request, index)
        while sampling.ignore_eos and text and len(text) < sampling.max_tokens:
            text += text
        ends = [(text.find(stop), len(stop)) for stop in sampling.stop if stop in text]
        if ends:
            at, length = min(ends)
            raw = text[: at + length].encode()
            ids, pieces = (*raw,), _pieces(raw, len(text[:at].encode()))
        else:
            raw = text.encode()
            ids, pieces = (*raw, EOS), (*_pieces(raw, None), "")
        if len(ids) > sampling.max_tokens or (sampling.ignore_eos and not ends):
            return _Side(ids[: sampling.max_tokens], pieces[: sampling.max_tokens], "length")
        return _Side(ids, pieces, "stop")

    def _chunk(self, request: GenerationRequest, index: int, side: _Side, step: int) -> Chunk:
        token = side.token_ids[step]
        last = step == len(side.token_ids) - 1
        finish = side.finish_reason if last else None
        if request.sampling.logprobs is None:
            return Chunk(index, side.pieces[step], (token,), finish_reason=finish)
        before = side.token_ids[step - 1] if step else request.prompt_token_ids[-1]
        logprob = self.logprob(request.adapter, before, token)
        others = sorted(((self.logprob(request.adapter, before, i), i) for i in range(97, 123)), reverse=True)
        top = tuple(TopLogprob(i, chr(i), value) for value, i in others[: request.sampling.logprobs])
        text = "<eos>" if token == EOS else bytes([token]).decode(errors="replace")
        texts = (text,) if request.sampling.spelled else ()
        return Chunk(index, side.pieces[step], (token,), (logprob,), texts, (top,), finish)

    def _words(self, request: GenerationRequest, index: int) -> str:
        sampling = request.sampling
        seed: object = "greedy"
        if sampling.temperature > 0:
            seed = (sampling.seed, index) if sampling.seed is not None else ("free", next(self._counter))
        weights = self._weights.get(request.adapter) if request.adapter else None
        start = (request.prompt_token_ids, weights, seed, sampling.temperature, sampling.top_p)
        return " ".join(WORDS[_hash(start, i) % len(WORDS)] for i in range(self._word_count))


def _pieces(raw: bytes, shown: int | None) -> tuple[str, ...]:
    """Text that each byte adds: a character leaves with its last byte; nothing leaves after `shown` bytes."""
    pieces: list[str] = []
    held = b""
    for at, byte in enumerate(raw):
        held += bytes([byte])
        try:
            piece = held.decode()
        except UnicodeDecodeError:
            pieces.append("")
            continue
        held = b""
        pieces.append(piece if shown is None or at < shown else "")
    return tuple(pieces)
