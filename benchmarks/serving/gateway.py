"""Latency of a chat completion through Hustings and through LiteLLM's proxy, both in front of one instant backend."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import servers
from benchmarks.serving.client import Ask, Heard, closed_loop, openai_token
from benchmarks.serving.instant import MODEL
from benchmarks.serving.stats import interval, milliseconds, ratio, row
from serve.config import ServeConfig

AIM = 1 / 3
TOKENS = 16
MESSAGES = [{"role": "user", "content": "What makes a good day?"}]
SIDES = ("direct", "hustings", "litellm")


@dataclass(frozen=True)
class Scene:
    """What is asked: whole or streamed, how many at a time, how many a round."""

    stream: bool
    workers: int
    count: int

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{'streamed' if self.stream else 'whole'}, {self.workers} at a time"


SCENES = (Scene(False, 1, 150), Scene(True, 1, 150), Scene(False, 16, 320), Scene(True, 16, 320))


async def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """All scenes, the sides in turn."""
    with ExitStack() as stack:
        backend = stack.enter_context(servers.instant(folder))
        gateway = stack.enter_context(servers.hustings(ServeConfig(engine_urls=(backend,)), folder))
        proxy = stack.enter_context(servers.litellm_proxy(backend, folder))
        urls = {"direct": backend, "hustings": gateway.url, "litellm": proxy.url}
        gateways: dict[str, servers.Server] = {"hustings": gateway, "litellm": proxy}
        heard: dict[tuple[Scene, str], list[Heard]] = {}
        computed: defaultdict[tuple[Scene, str], float] = defaultdict(float)
        for scene in SCENES:  # the first requests import and connect
            for side in SIDES:
                await _ask(urls[side], side, scene, 4 * scene.workers)
        for _ in range(rounds):
            for scene in SCENES:
                for side in SIDES:
                    before = {name: server.computed() for name, server in gateways.items()}
                    heard.setdefault((scene, side), []).extend(await _ask(urls[side], side, scene, scene.count))
                    if side in gateways:
                        computed[scene, side] += gateways[side].computed() - before[side]
    found = []
    for scene in SCENES:
        each = {side: heard[scene, side] for side in SIDES}
        found.append(_figures(scene, each) | _processor({s: computed[scene, s] / len(each[s]) for s in gateways}))
    return {"scenes": found}


def _processor(seconds: dict[str, float]) -> dict[str, Any]:
    """What a busy machine hardly changes: the gateway's own processor time a request."""
    return {
        "processor ms a request": {side: round(1e3 * each, 2) for side, each in seconds.items()},
        "processor ratio": round(seconds["hustings"] / seconds["litellm"], 3),
    }


async def _ask(url: str, side: str, scene: Scene, count: int) -> list[Heard]:
    model = "base" if side == "hustings" else MODEL
    body = {"model": model, "messages": MESSAGES, "max_tokens": TOKENS, "stream": scene.stream}
    ask = Ask.post(f"{url}/v1/chat/completions", body, openai_token, Authorization="Bearer none")
    return await closed_loop(url, itertools.repeat(ask), workers=scene.workers, count=count)


def _figures(scene: Scene, heard: dict[str, list[Heard]]) -> dict[str, Any]:
    whole = {side: [each.whole for each in heard[side]] for side in SIDES}
    found: dict[str, Any] = {
        "scene": scene.name,
        "requests a side": len(whole["direct"]),
        "ms": {side: milliseconds(whole[side]) for side in SIDES},
        "ratio": round(ratio(whole["hustings"], whole["litellm"]), 3),
        "interval": [round(each, 3) for each in interval(whole["hustings"], whole["litellm"], ratio)],
    }
    if scene.stream:
        first = {side: [each.first for each in heard[side]] for side in SIDES}
        found["first token, ms"] = {side: milliseconds(first[side]) for side in SIDES}
        found["first token, ratio"] = round(ratio(first["hustings"], first["litellm"]), 3)
    return found


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The aim: in each scene, by the clock; and by the processor's time, which says more on a busy machine."""
    found = []
    for each in figures["scenes"]:
        clock, processor = each["ratio"], each["processor ratio"]
        what = f"latency against LiteLLM, p50, {each['scene']}"
        found.append(row(what, clock, "at most 0.333", clock <= AIM, interval=each["interval"]))
        what = f"processor time a request against LiteLLM, {each['scene']}"
        found.append(row(what, processor, "at most 0.333", processor <= AIM))
    return found


def run(rounds: int, folder: Path, model: Path | None) -> dict[str, Any]:
    """The benchmark."""
    del model
    return asyncio.run(measure(rounds, folder))
