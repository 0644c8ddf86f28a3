"""`hustings serve` with an engine that answers at once, inside the process; a signal starts and ends a CPU profile.

    python -m benchmarks.serving.instant_engine --config FILE

All else is what users run: routes, ledger, relay. The engine gives one token a loop turn and stream, as vLLM's output
handler wakes every stream once a step.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import FrameType

from benchmarks.serving.profiler import Profiler
from deploy.cli import main
from feedback.contracts import Message
from serve import main as serving
from serve.config import ServeConfig
from serve.engines.base import Chunk, Ending, Engine, EngineInfo, EngineLoad, GenerationRequest

PROFILE_VARIABLE = "HUSTINGS_BENCH_PROFILE"
"""File to write the profile to, when SIGUSR2 comes for the second time."""


class InstantEngine:
    """Keeps `serve.engines.base.Engine`; every answer is `max_tokens` words."""

    def __init__(self, config: ServeConfig) -> None:
        self._info = EngineInfo("instant", "0", "none", config.max_model_len, config.max_lora_rank)

    @property
    def info(self) -> EngineInfo:
        """What is served."""
        return self._info

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to stop."""

    async def check_health(self) -> None:
        """Always well."""

    async def tokenize(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Eight ids."""
        del messages
        return tuple(range(8))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """One token of each answer a turn of the loop."""
        sampling = request.sampling
        logprobs = () if sampling.logprobs is None else (-1.0,)
        tokens = (" word",) if sampling.spelled and sampling.logprobs is not None else ()
        top = () if sampling.logprobs is None else ((),)
        for step in range(sampling.max_tokens):
            await asyncio.sleep(0)
            finish: Ending | None = "length" if step == sampling.max_tokens - 1 else None
            for index in range(sampling.n):
                more = index < sampling.n - 1
                yield Chunk(index, " word", (7,), logprobs, tokens, top, finish, more)

    async def score(self, token_ids: Sequence[int], adapter: str | None) -> tuple[float, ...]:
        """Minus one each."""
        del adapter
        return (-1.0,) * (len(token_ids) - 1)

    async def load_adapter(self, name: str, path: Path) -> None:
        """There are none."""

    async def unload_adapter(self, name: str) -> None:
        """There are none."""

    def adapters(self) -> frozenset[str]:
        """There are none."""
        return frozenset()

    def load(self) -> EngineLoad:
        """Never busy."""
        return EngineLoad()


def build(model: str, config: ServeConfig) -> Engine:
    """In place of `serve.main.build_engine`."""
    del model
    return InstantEngine(config)


def install_profiler(path: Path) -> None:
    """SIGUSR2 starts the profile, and the next one writes it."""
    profiler = Profiler()

    def switch(number: int, frame: FrameType | None) -> None:
        del number, frame
        if profiler.running:
            profiler.stop()
            path.write_text(profiler.folded())
        else:
            profiler.start()

    signal.signal(signal.SIGUSR2, switch)


if __name__ == "__main__":
    if file := os.environ.get(PROFILE_VARIABLE):
        install_profiler(Path(file))
    serving.build_engine = build
    sys.argv[1:1] = ["serve"]
    main()
