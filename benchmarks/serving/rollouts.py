"""A person's time to the first token, with and without a trainer that samples through the same engine.

Blocks in turn: nobody else, then a trainer that always has as many rollouts in the engine as may be there at once. A
person asks for a pair, alone, and again. Rollouts have the lowest priority and leave some slots free, so nobody waits
for one to end; but a step of the engine that computes for them too takes longer.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import servers
from benchmarks.serving.client import Ask, Connection, pair_token
from benchmarks.serving.stats import added_ms, interval, milliseconds, row
from serve.config import ServeConfig

ASKS = 15
"""A person's requests of a block."""
TOKENS = 48
"""Of a rollout, as `train.rollout.max_tokens` has it by default."""
PROMPTS, ANSWERS = 16, 4
"""Of a request for rollouts: the trainer's own."""
TOKEN = "the-operator-of-the-benchmark"
CONFIG = ServeConfig(engine_seed=0, max_model_len=512)
SETTLE_S = 60.0


class Trainer:
    """Keeps the engine busy with rollouts until it is told to stop."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=600)
        self._seeds = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self.seconds: list[float] = []

    async def start(self) -> None:
        """Ask, with two requests at once, and return when the engine runs what it may."""
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(2)]
        wanted = CONFIG.max_num_seqs - CONFIG.reserved_seqs - ANSWERS
        async with asyncio.timeout(SETTLE_S):
            while await self._running() < wanted:  # noqa: ASYNC110  another process: there is nothing to await
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Hang up, which ends the rollouts, and return when the engine is idle."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with asyncio.timeout(SETTLE_S):
            while await self._running() > 0:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self) -> None:
        while True:
            first = next(self._seeds)
            body = {
                "adapter": None,
                "prompts": [
                    [1000 + (first * PROMPTS + number + at) % 40_000 for at in range(40)] for number in range(PROMPTS)
                ],
                "n": ANSWERS,
                "max_tokens": TOKENS,
                "seed": first,
            }
            began = time.perf_counter()
            answer = await self._client.post("/v1/rollouts", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
            answer.raise_for_status()
            self.seconds.append(time.perf_counter() - began)

    async def _running(self) -> int:
        load: dict[str, int] = (await self._client.get("/v1/loop")).json()["chat"]
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
        return load["running"]


async def measure(rounds: int, folder: Path, model: Path) -> dict[str, Any]:
    """First tokens of both kinds of blocks."""
    found: dict[str, list[float]] = {"alone": [], "beside rollouts": []}
    numbers = itertools.count(1)
    with ExitStack() as stack:
        environment = {"HUSTINGS_OPERATOR_TOKEN": TOKEN}
        server = stack.enter_context(servers.hustings(CONFIG, folder, model=model, environment=environment))
        trainer, person = Trainer(server.url), Connection(server.url)
        for block in range(2 * rounds + 1):
            busy = block % 2 == 0 and block > 0  # the first block warms up
            if busy:
                await trainer.start()
            firsts = [(await person.ask(_ask(server.url, next(numbers)))).first for _ in range(ASKS)]
            if busy:
                await trainer.stop()
            if block > 0:
                found["beside rollouts" if busy else "alone"] += firsts
            print(f"block {block}, rollouts {busy}: {milliseconds(firsts)}", file=sys.stderr, flush=True)
        person.close()
        await trainer.close()
    alone, beside = found["alone"], found["beside rollouts"]
    return {
        "first token, ms": {kind: milliseconds(seconds) for kind, seconds in found.items()},
        "slowest, ms": {kind: round(1e3 * max(seconds), 1) for kind, seconds in found.items()},
        "requests a side": len(alone),
        "added ms": round(added_ms(beside, alone), 1),
        "interval": [round(each, 1) for each in interval(beside, alone, added_ms)],
        # Those that ended while a person asked; none where each takes longer than all of a block's requests.
        "a request for rollouts, s": [round(each, 1) for each in sorted(trainer.seconds)],
    }


def _ask(url: str, number: int) -> Ask:
    body = {
        "messages": [{"role": "user", "content": f"Story number {number}: tell a long story about a river."}],
        "max_tokens": 2,
        "stream": True,
    }
    return Ask.post(f"{url}/v1/pairs", body, pair_token, X_Hustings_Voter="bench")


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The one line: nobody may wait for a rollout to end."""
    slowest = figures["slowest, ms"]["beside rollouts"]
    reached = all(slowest < 1e3 * seconds for seconds in figures["a request for rollouts, s"])
    aim = "nobody waits for a rollout to end"
    found = row("first token beside rollouts, p50, ms more", figures["added ms"], aim, reached)
    return [{**found, "interval": figures["interval"]}]


def run(rounds: int, folder: Path, model: Path | None) -> dict[str, Any]:
    """The benchmark."""
    assert model is not None
    return asyncio.run(measure(rounds, folder, model))
