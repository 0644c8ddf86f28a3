"""The engine contract over one or several vLLM OpenAI servers.

Start each with `vllm_settings.server_command` and `server_environment`: the arguments of the in-process engine. All
must serve one model and see the adapter folders under the same paths. A request goes to the least loaded server that
has confirmed its adapter; a server lost before the first token is replaced by another one, silently.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from feedback.contracts import Message
from serve.config import ServeConfig
from serve.engines import greedy
from serve.engines.admission import Admission
from serve.engines.base import (
    AdapterLoadFailed,
    AnswerBroken,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineLost,
    EngineUnavailable,
    GenerationRequest,
    Priority,
    Sampling,
    TopLogprob,
    check_length,
    check_text,
)
from serve.engines.http_wire import AiohttpWire, HttpWire
from serve.engines.registry import AdapterRegistry, folder_digest
from serve.engines.vllm_attempts import Attempts
from serve.engines.vllm_server import CantLoad, VllmServer
from serve.engines.vllm_translate import ending
from serve.engines.vllm_wire import completion_body, likeliest, prompt_logprobs, scoring_body

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")


class VllmHttpEngine:
    """Keeps `Engine` with vLLM servers.

    Args:
        urls: the servers' roots.
        api_key: sent as a bearer token, where the servers ask for one.
        wire: replaces the network in tests. Without it, make the engine on the running loop.
    """

    def __init__(
        self,
        urls: Sequence[str],
        config: ServeConfig,
        *,
        api_key: str | None = None,
        wire: HttpWire | None = None,
    ) -> None:
        self._config = config
        self._wire = wire or AiohttpWire({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._servers = tuple(VllmServer(url, self._wire, config.chat_template_kwargs) for url in urls)
        self._registry = AdapterRegistry(config.max_loras)
        slots = config.max_num_seqs * len(self._servers)
        reserved = config.reserved_seqs * len(self._servers)
        self._admission = Admission(slots, reserved, config.max_waiting_seqs)
        self._slots = slots
        self._info: EngineInfo | None = None
        self._swap = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._texts: dict[int, str] = {}

    @property
    def info(self) -> EngineInfo:
        """What is served. Valid after `start`."""
        if self._info is None:
            raise EngineUnavailable("no vLLM server has answered yet")
        return self._info

    async def start(self) -> None:
        """Wait until a server answers.

        Raises:
            EngineUnavailable: none did in time, or two of them serve different models.
        """
        try:
            async with asyncio.timeout(self._config.engine_start_timeout_s):
                await self._first_answer()
        except TimeoutError as error:
            told = "; ".join(server.trouble or server.url for server in self._servers)
            raise EngineUnavailable(f"no vLLM server answers ({told}); start them or mend serve.engine_urls") from error
        up = [server for server in self._servers if server.up]
        if len({server.base for server in up}) > 1:
            raise EngineUnavailable(f"the vLLM servers serve different models: {sorted({each.base for each in up})}")
        self._info = EngineInfo(
            model=up[0].base,
            version=f"vllm {await up[0].version()}",
            dtype="remote",
            max_model_len=min(server.max_model_len for server in up),
            max_lora_rank=self._config.max_lora_rank,
        )
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching and hang up; the servers go on. Safe to call twice."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._wire.close()
        for server in self._servers:
            server.up = False

    async def check_health(self) -> None:
        """Return if a server can answer.

        Raises:
            EngineUnavailable: none can just now.
            EngineLost: nobody looks after them any longer.
        """
        _ = self.info
        if self._watcher is not None and self._watcher.done() and not self._watcher.cancelled():
            raise EngineLost(f"the watch over the vLLM servers has ended: {self._watcher.exception()!r}")
        if not any(server.up for server in self._servers):
            raise EngineUnavailable("no vLLM server answers; they are asked again all the time")

    async def tokenize(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's ids, by a server's chat template."""
        check_text(messages, self.info.max_model_len)
        return await self._anywhere(None, 0, lambda server: server.tokenize(messages))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the answers. Closing the iterator makes the server abort.

        Raises:
            EngineError: one of the tree; after the first chunk `EngineUnavailable` where the server was lost.
        """
        await self.check_health()
        wanted, sampling = request.sampling, greedy.written(request.sampling)
        if sampling is not wanted:
            request = replace(request, sampling=sampling)
        check_length(len(request.prompt_token_ids), sampling.max_tokens, self.info.max_model_len)
        async with self._admission.enter(request.priority, sampling.n):
            with self._registry.use(request.adapter):
                attempts = Attempts(self._servers, request.adapter)
                for server in attempts:
                    with server.busy(sampling.n), attempts.another_may_do(server):
                        left = sampling.n
                        async with aclosing(server.stream(completion_body(request, server.base))) as events:
                            async for event in events:
                                for choice in event["choices"]:
                                    chunk = await self._chunk(choice, sampling, server)
                                    attempts.begun = True
                                    left -= chunk.finish_reason is not None
                                    if sampling is wanted:
                                        yield chunk
                                        continue
                                    for copy in greedy.copies(chunk, wanted.n):
                                        yield copy
                        if left > 0:
                            raise AnswerBroken(f"{server.url} left {left} of the answers without an end; ask again")
                        return

    async def score(self, token_ids: Sequence[int], adapter: str | None) -> tuple[float, ...]:
        """Natural-log probability of each id but the first, given those before it, at temperature 1."""
        await self.check_health()
        if len(token_ids) < 2:
            return ()
        check_length(len(token_ids), 1, self.info.max_model_len)
        async with self._admission.enter(Priority.PROBE, 1):
            with self._registry.use(adapter):
                answer = await self._anywhere(
                    adapter, 1, lambda server: server.complete(scoring_body(token_ids, adapter or server.base))
                )
                return prompt_logprobs(answer, token_ids)

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter on every server that is up; one that comes back later gets it then.

        Raises:
            AdapterLoadFailed: a server refused it; none keeps it.
            EngineUnavailable: no server is up, or none of them can load adapters.
        """
        await self.check_health()
        digest = await asyncio.to_thread(folder_digest, path)
        async with self._swap:
            adapter = self._registry.plan(name, path, digest)
            if adapter is None:
                return
            up = [server for server in self._servers if server.up]
            done = await asyncio.gather(*(each.load(name, str(adapter.path)) for each in up), return_exceptions=True)
            failures = [error for error in done if isinstance(error, BaseException)]
            refused = next((error for error in failures if not isinstance(error, EngineUnavailable)), None)
            if refused is None and len(failures) < len(up):
                self._registry.admit(adapter)
                return
            await self._unload(name)
            unable = next((error for error in failures if isinstance(error, CantLoad)), None)
            raise refused or unable or EngineUnavailable("every vLLM server was lost while the adapter was loaded")

    async def unload_adapter(self, name: str) -> None:
        """Take no new request for the adapter, wait for its running ones to end, then free it. Unknown names pass."""
        adapter = await self._registry.drain(name)
        if adapter is None:
            return
        async with self._swap:
            if self._registry.find(name) is adapter:
                self._registry.forget(adapter)
                await self._unload(name)

    def adapters(self) -> frozenset[str]:
        """Names that a request may use now: some server that is up has confirmed them."""
        # A copy of each, for the pages' and metrics' threads ask too.
        held = {name for server in self._servers if server.up for name in list(server.confirmed)}
        return self._registry.names() & held

    def load(self) -> EngineLoad:
        """How busy the servers are with what we have given them."""
        inside = self._admission.unfinished - self._admission.held_back
        running = min(inside, self._slots)
        waiting = self._admission.unfinished - running
        return EngineLoad(running, waiting, running / self._slots, self._registry.by_adapter())

    async def _anywhere(
        self, adapter: str | None, sequences: int, call: Callable[[VllmServer], Awaitable[Answer]]
    ) -> Answer:
        """Ask the servers one after the other until one answers."""
        attempts = Attempts(self._servers, adapter)
        for server in attempts:
            with server.busy(sequences), attempts.another_may_do(server):
                return await call(server)
        raise AssertionError("attempts end with an answer or an error")

    async def _unload(self, name: str) -> None:
        for server in self._servers:
            held = name in server.confirmed
            server.confirmed.discard(name)
            try:
                if held:
                    await server.unload(name)
            except EngineError as error:
                server.leftover.add(name)
                log.warning("a vLLM server kept an adapter", server=server.url, adapter=name, reason=str(error))

    async def _first_answer(self) -> None:
        while True:
            await asyncio.gather(*(self._look_at(server) for server in self._servers))
            if any(server.up for server in self._servers):
                return
            await asyncio.sleep(self._config.engine_poll_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.engine_poll_s)
            await asyncio.gather(*(self._look_at(server) for server in self._servers))

    async def _look_at(self, server: VllmServer) -> None:
        """See whether a server is well; one that has come back (empty) gets the adapters that it lacks."""
        trouble = ""
        try:
            await server.check()
            async with self._swap:
                trouble = await self._reconcile(server)
            server.up = True
        except EngineError as error:
            server.up = False
            trouble = str(error)
        if trouble and trouble != server.trouble:  # told once, not at every look
            log.warning("trouble with a vLLM server", server=server.url, up=server.up, reason=trouble)
        server.trouble = trouble

    async def _reconcile(self, server: VllmServer) -> str:
        """Under the swap lock: what the server holds becomes what the registry says; returns what it wouldn't take.

        Raises:
            EngineUnavailable: it serves something else than the others.
        """
        held = await server.models()
        self._require_same(server)
        server.confirmed &= held.keys()
        for name in sorted(server.leftover & held.keys() - self._registry.names()):
            await server.unload(name)
        server.leftover.clear()
        trouble = ""
        for name in sorted(self._registry.names() - server.confirmed):
            adapter = self._registry.find(name)
            try:
                if adapter is not None:
                    await server.load(name, str(adapter.path))
            except (AdapterLoadFailed, CantLoad) as error:
                trouble = f"it doesn't take an adapter that others hold: {error}"
        return trouble

    def _require_same(self, server: VllmServer) -> None:
        """One that comes (back) later must be as those that serving began with."""
        info = self._info
        if info is not None and (server.base != info.model or server.max_model_len < info.max_model_len):
            raise EngineUnavailable(
                f"{server.url} serves {server.base} with a context of {server.max_model_len} tokens, not {info.model}"
                f" with {info.max_model_len}; it is left alone"
            )

    async def _chunk(self, choice: dict[str, Any], sampling: Sampling, server: VllmServer) -> Chunk:
        ids = tuple(choice.get("token_ids") or ())
        reason = choice.get("finish_reason")
        finish = ending(reason)
        told = choice.get("logprobs")
        if sampling.logprobs is None or told is None:
            return Chunk(choice["index"], choice["text"], ids, finish_reason=finish)
        tops: list[tuple[tuple[int, float], ...]] = [
            tuple(likeliest(step, sampling.logprobs)) for step in told["top_logprobs"]
        ]
        spelled = ids if sampling.spelled else ()
        await self._learn_texts({*spelled, *(token for step in tops for token, _ in step)}, server)
        return Chunk(
            index=choice["index"],
            text=choice["text"],
            token_ids=ids,
            logprobs=tuple(float(value) for value in told["token_logprobs"]),
            tokens=tuple(self._texts[token] for token in spelled),
            top_logprobs=tuple(
                tuple(TopLogprob(token, self._texts[token], value) for token, value in step) for step in tops
            ),
            finish_reason=finish,
        )

    async def _learn_texts(self, token_ids: set[int], server: VllmServer) -> None:
        unknown = sorted(token_ids - self._texts.keys())
        texts = await asyncio.gather(*(server.token_text(token) for token in unknown))
        self._texts.update(zip(unknown, texts, strict=True))
