"""`POST /v1/pairs` beside a raw `vllm serve` with n=2: tokens a second, and the time to the first token.

Both servers are up, the same engine arguments in each, and only one is asked at a time: legs in turn for tokens a
second, single requests in turn for the first token. An engine that nobody asks sleeps.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.serving import servers
from benchmarks.serving.client import Ask, Connection, closed_loop, openai_token, pair_token
from benchmarks.serving.stats import added_ms, interval, milliseconds, row, spread
from serve.config import ServeConfig

THROUGHPUT_AIM = 0.97
FIRST_TOKEN_AIM_MS = 3.0
TOKENS = 32
REQUESTS = {1: 4, 8: 32, 32: 64}
"""Requests of a leg, by how many are asked at a time: its end, when fewer and fewer are, is the smaller part of it."""
FIRSTS = 30
"""Requests a side and round for the first token."""
ENOUGH_S = 900.0
"""On a busy machine: no leg of a second or later round begins after so many seconds."""
TOPICS = ("a river", "bread", "the night sky", "an old city", "winter", "a long walk", "a garden", "trains")
CONFIG = ServeConfig(engine_seed=0, max_model_len=512)


class Side:
    """One of the two servers and how it is asked."""

    def __init__(self, name: str, server: servers.Server, model: str) -> None:
        self.name = name
        self._server = server
        self._url = server.url
        self._model = model
        self.tokens = 0.0
        self.computed_s = 0.0
        self._numbers = itertools.count()

    def ask(self, tokens: int) -> Ask:
        """The next request: a prompt that neither server has seen, the same to both."""
        number = next(self._numbers)
        topic = TOPICS[number % len(TOPICS)]
        content = f"Story number {number + 1}: tell a very long story about {topic}."
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "stream": True,
        }
        if self.name == "hustings":
            return Ask.post(f"{self._url}/v1/pairs", body, pair_token, X_Hustings_Voter="bench")
        body |= {"model": self._model, "n": 2, "stream_options": {"include_usage": True}}
        return Ask.post(f"{self._url}/v1/chat/completions", body, openai_token)

    async def leg(self, workers: int, count: int) -> float:
        """Tokens a second of a closed loop, both answers of each request together."""
        before, computed = self._told(), self._server.computed()
        began = asyncio.get_running_loop().time()
        asks: Iterator[Ask] = (self.ask(TOKENS) for _ in itertools.count())
        heard = await closed_loop(self._url, asks, workers=workers, count=count, keep=self.name == "vllm")
        seconds = asyncio.get_running_loop().time() - began
        self.computed_s += self._server.computed() - computed
        tokens = self._told() - before if self.name == "hustings" else sum(_usage(each.events) for each in heard)
        self.tokens += tokens
        return tokens / seconds

    def _told(self) -> float:
        """Tokens that Hustings has written into pairs so far, by its own metrics."""
        if self.name != "hustings":
            return 0.0
        wanted = 'hustings_engine_tokens_total{direction="out",kind="pair"} '
        for line in httpx.get(f"{self._url}/metrics", trust_env=False, timeout=30).text.splitlines():
            if line.startswith(wanted):
                return float(line.removeprefix(wanted))
        return 0.0

    async def firsts(self, other: Side, count: int) -> tuple[list[float], list[float]]:
        """Seconds to the first token, here and there, a request here and one there in turn."""
        mine, theirs = Connection(self._url), Connection(other._url)
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(count):
            pairs = [(mine, self, found[0]), (theirs, other, found[1])]
            for connection, side, kept in pairs if number % 2 else reversed(pairs):
                kept.append((await connection.ask(side.ask(2))).first)
        mine.close()
        theirs.close()
        return found


def _usage(events: list[bytes]) -> int:
    for event in reversed(events):
        if b'"usage":{' in event:
            return int(json.loads(event.removeprefix(b"data: "))["usage"]["completion_tokens"])
    raise AssertionError("a raw stream told no usage")


async def measure(rounds: int, folder: Path, model: Path) -> dict[str, Any]:
    """Both figures."""
    with ExitStack() as stack:
        raw = Side("vllm", stack.enter_context(servers.raw_vllm(model, CONFIG, folder)), str(model))
        ours = Side("hustings", stack.enter_context(servers.hustings(CONFIG, folder, model=model)), "")
        for side in (raw, ours):
            await side.leg(8, 8)
        legs: dict[int, list[tuple[float, float]]] = {workers: [] for workers in REQUESTS}
        firsts: tuple[list[float], list[float]] = ([], [])
        began = asyncio.get_running_loop().time()
        for number in range(rounds):
            for kept, new in zip(firsts, await ours.firsts(raw, FIRSTS), strict=True):
                kept.extend(new)
            print(f"first token, ms more: {added_ms(*firsts):.2f}", file=sys.stderr, flush=True)
            for workers, count in REQUESTS.items():
                if number and asyncio.get_running_loop().time() - began > ENOUGH_S:
                    break
                order = (ours, raw) if number % 2 else (raw, ours)
                speeds = {side.name: await side.leg(workers, count) for side in order}
                legs[workers].append((speeds["hustings"], speeds["vllm"]))
                print(f"round {number + 1}, {workers} at a time: {speeds}", file=sys.stderr, flush=True)
    return {
        "tokens": TOKENS,
        "tokens a second": {str(workers): _throughput(found) for workers, found in legs.items()},
        # The engine's core is a process of its own on both sides: this is what its front costs, on a busy machine too.
        "front's processor time a token, us": {
            side.name: round(1e6 * side.computed_s / side.tokens, 1) for side in (ours, raw)
        },
        "first token": {
            "ms": {"hustings": milliseconds(firsts[0]), "vllm": milliseconds(firsts[1])},
            "added ms": round(added_ms(*firsts), 2),
            "interval": [round(each, 2) for each in interval(*firsts, added_ms)],
            "requests a side": len(firsts[0]),
        },
    }


def _throughput(found: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "hustings": spread([ours for ours, _ in found], 1),
        "vllm": spread([raw for _, raw in found], 1),
        "ratios": [round(ours / raw, 3) for ours, raw in found],
        "ratio": round(median(ours / raw for ours, raw in found), 3),
    }


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The aims."""
    speed = [
        row(
            f"paired tokens a second against raw vLLM, {workers} at a time",
            each["ratio"],
            f"at least {THROUGHPUT_AIM}",
            each["ratio"] >= THROUGHPUT_AIM,
            interval=[min(each["ratios"]), max(each["ratios"])],
        )
        for workers, each in figures["tokens a second"].items()
    ]
    first = figures["first token"]
    reached = first["added ms"] <= FIRST_TOKEN_AIM_MS
    told = row("first token against raw vLLM, p50, ms more", first["added ms"], "at most 3", reached)
    return [*speed, {**told, "interval": first["interval"]}]


def run(rounds: int, folder: Path, model: Path | None) -> dict[str, Any]:
    """The benchmark."""
    assert model is not None
    return asyncio.run(measure(rounds, folder, model))
