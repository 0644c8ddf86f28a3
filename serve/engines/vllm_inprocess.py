"""vLLM in this process: `AsyncLLM` drives its engine core, a child process, and swaps adapters while it streams."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from feedback.contracts import Message
from serve.config import ServeConfig
from serve.engines import greedy, vllm_logprobs, vllm_settings, vllm_translate
from serve.engines.admission import Admission
from serve.engines.base import (
    AdapterLoadFailed,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineLost,
    EngineUnavailable,
    GenerationRequest,
    Priority,
    check_length,
    check_text,
)
from serve.engines.registry import AdapterRegistry, folder_digest

log = structlog.get_logger(__name__)


class VllmEngine:
    """Keeps `Engine` with vLLM's V1 engine: LoRA, priority scheduling, prefix caching.

    Recorded log-probabilities are those of the distribution that was sampled from (after temperature and top-p);
    `score` gives those of the model at temperature 1.
    """

    def __init__(self, model: str, config: ServeConfig) -> None:
        self._model = model
        self._config = config
        self._llm: Any = None
        self._dead: str | None = "the engine is starting"
        self._info: EngineInfo | None = None
        self._registry = AdapterRegistry(config.max_loras)
        self._admission = Admission(config.max_num_seqs, config.reserved_seqs, config.max_waiting_seqs)
        self._stats = vllm_translate.LatestStats()
        self._swap = asyncio.Lock()

    @property
    def info(self) -> EngineInfo:
        """What is served. Valid after `start`."""
        if self._info is None:
            raise EngineUnavailable("the engine is starting")
        return self._info

    async def start(self) -> None:
        """Load the model; returns when it can answer.

        Raises:
            EngineUnavailable: vLLM is missing or could not load the model; the message says why.
        """
        began = time.monotonic()
        given = {**os.environ}
        cpu = not vllm_settings.has_gpu()
        os.environ.update(vllm_settings.environment(self._config, self._model, given, cpu=cpu))
        try:
            async with asyncio.timeout(self._config.engine_start_timeout_s):
                self._llm = await _in_daemon_thread(self._build)
                await self._llm.get_supported_tasks()
        except TimeoutError as error:
            raise EngineUnavailable(
                f"the engine did not start within {self._config.engine_start_timeout_s:.0f} s "
                "(serve.engine_start_timeout_s)"
            ) from error
        self._info = self._describe()
        self._dead = None
        log.info(
            "engine started", model=self._model, dtype=self._info.dtype, seconds=round(time.monotonic() - began, 1)
        )

    async def close(self) -> None:
        """Stop everything; safe to call twice."""
        self._dead = "the engine is closed"
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # else it takes the end of the core process for a crash, and logs one
        await asyncio.to_thread(llm.shutdown)
        llm.shutdown = lambda: None  # vLLM's destructor calls it again, and fails at the interpreter's end

    async def check_health(self) -> None:
        """Return if the engine can answer.

        Raises:
            EngineUnavailable: it is starting or closed.
            EngineLost: its core process has died.
        """
        if self._dead is not None:
            raise EngineUnavailable(self._dead)
        if self._llm.errored:
            raise EngineLost("the engine's core process has died; restart serving")

    async def tokenize(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's ids: chat template applied, generation prompt added."""
        await self.check_health()
        check_text(messages, self.info.max_model_len)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        tokenizer = self._llm.get_tokenizer()
        told = self._config.chat_template_kwargs
        try:
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False, **told
            )
        except Exception as error:  # a template is a program of the model's authors: it raises what it likes
            raise vllm_translate.template_refusal(error) from error
        return tuple(ids)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the answers. Closing the iterator aborts the generation in the engine at once.

        Raises:
            EngineError: one of the tree in `serve.engines.base`.
        """
        await self.check_health()
        wanted, sampling = request.sampling, greedy.written(request.sampling)
        check_length(len(request.prompt_token_ids), sampling.max_tokens, self.info.max_model_len)
        parameters = vllm_translate.sampling_parameters(sampling)
        async with self._admission.enter(request.priority, sampling.n):
            with self._registry.use(request.adapter) as adapter, vllm_translate.engine_errors(self._is_dead):
                stream = self._llm.generate(
                    {"prompt_token_ids": list(request.prompt_token_ids)},
                    parameters,
                    request.request_id,
                    lora_request=vllm_translate.lora_request(adapter),
                    priority=int(request.priority),
                )
                async with aclosing(stream):
                    async for output in stream:
                        for chunk in vllm_translate.chunks(output, sampling):
                            if sampling is wanted:
                                yield chunk
                                continue
                            for copy in greedy.copies(chunk, wanted.n):
                                yield copy

    async def score(self, token_ids: Sequence[int], adapter: str | None) -> tuple[float, ...]:
        """Natural-log probability of each id but the first, given those before it, at temperature 1."""
        await self.check_health()
        if len(token_ids) < 2:
            return ()
        check_length(len(token_ids), 1, self.info.max_model_len)
        async with self._admission.enter(Priority.PROBE, 1):
            with self._registry.use(adapter) as held, vllm_translate.engine_errors(self._is_dead):
                stream = self._llm.generate(
                    {"prompt_token_ids": list(token_ids)},
                    vllm_translate.scoring_parameters(),
                    f"score-{time.monotonic_ns()}",
                    lora_request=vllm_translate.lora_request(held),
                    priority=int(Priority.PROBE),
                )
                async with aclosing(stream):
                    async for output in stream:
                        return vllm_translate.prompt_logprobs(output, token_ids)
        raise EngineError("the engine ended a scoring request without an answer")

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter while streams run; none of them fails. A name is for one set of weights, for ever.

        Raises:
            AdapterLoadFailed: the engine refused it; nothing changed.
        """
        await self.check_health()
        digest = await asyncio.to_thread(folder_digest, path)
        async with self._swap:
            adapter = self._registry.plan(name, path, digest)
            if adapter is None:
                return
            try:
                loaded = await self._llm.add_lora(vllm_translate.lora_request(adapter))
            except Exception as error:  # the core process reports every failure as a bare Exception
                await self.check_health()
                raise AdapterLoadFailed(f"{name}: {vllm_translate.first_line(error)}") from error
            if not loaded:
                raise AdapterLoadFailed(f"{name}: the engine did not take it")
            self._registry.admit(adapter)

    async def unload_adapter(self, name: str) -> None:
        """Take no new request for the adapter, wait for its running ones to end, then free it. Unknown names pass."""
        adapter = await self._registry.drain(name)
        if adapter is None:
            return
        async with self._swap:
            if self._registry.find(name) is not adapter:
                return
            if not self._is_dead():
                with vllm_translate.engine_errors(self._is_dead):
                    await self._llm.remove_lora(adapter.number)
            self._registry.forget(adapter)

    def adapters(self) -> frozenset[str]:
        """Names that a request may use now."""
        return self._registry.names()

    def load(self) -> EngineLoad:
        """How busy the engine is: its own last figures, corrected by what has ended since."""
        unfinished = self._admission.unfinished
        running = min(self._stats.running, unfinished)
        usage = self._stats.kv_cache_usage if unfinished else 0.0
        return EngineLoad(running, unfinished - running, usage, self._registry.by_adapter())

    def _build(self) -> Any:
        """Blocking: imports vLLM and starts its core process."""
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineUnavailable(f"vLLM can't be imported ({error}); run `make setup` again") from error
        cpu = bool(current_platform.is_cpu())
        arguments = vllm_settings.engine_arguments(self._config, self._model, cpu=cpu)
        arguments.setdefault("seed", secrets.randbelow(1 << 31))
        vllm_logprobs.install_in_front()
        with _preloaded(cpu):
            try:
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._stats.logger()])
            except Exception as error:  # whatever stops a start is reported in one way
                raise EngineUnavailable(
                    f"vLLM could not load {self._model}: {vllm_translate.first_line(error)}"
                ) from error

    def _describe(self) -> EngineInfo:
        import vllm

        model = self._llm.model_config
        return EngineInfo(
            model=self._model,
            version=f"vllm {vllm.__version__}",
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=model.max_model_len,
            max_lora_rank=self._config.max_lora_rank,
        )

    def _is_dead(self) -> bool:
        return self._llm is None or bool(self._llm.errored)


async def _in_daemon_thread(work: Callable[[], Any]) -> Any:
    """Like `asyncio.to_thread`, but whoever stops meanwhile doesn't wait: a start of vLLM can't be broken off."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def run() -> None:
        try:
            report = (done.set_result, work())
        except BaseException as error:  # noqa: BLE001 - it goes to whoever waits
            report = (done.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *report)

    threading.Thread(target=run, name="engine-start", daemon=True).start()
    return await done


@contextmanager
def _preloaded(cpu: bool) -> Iterator[None]:
    """LD_PRELOAD for the processes that vLLM starts, and for no others."""
    before = os.environ.get("LD_PRELOAD")
    if cpu and (wanted := vllm_settings.preload(before or "")):
        os.environ["LD_PRELOAD"] = wanted
    try:
        yield
    finally:
        os.environ.pop("LD_PRELOAD", None)
        if before is not None:
            os.environ["LD_PRELOAD"] = before
