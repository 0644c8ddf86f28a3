"""500 streams at once through one serving process, on an engine that answers at once, with a CPU profile.

`POST /v1/pairs`, streamed: each stream carries two answers. First everything as fast as it goes, then with the profile.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving import servers
from benchmarks.serving.client import Ask, Heard, closed_loop, openai_token, pair_token
from benchmarks.serving.instant_engine import PROFILE_VARIABLE
from benchmarks.serving.profiler import by_package, parse, self_time, tree
from benchmarks.serving.stats import milliseconds, row, spread
from serve.config import ServeConfig

STREAMS = 500
TOKENS = 64
CONFIG = ServeConfig(max_in_flight=STREAMS + 12)
MESSAGES = [{"role": "user", "content": "What makes a good day?"}]


async def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """Rounds of 500 pairs, and of 500 chat completions; then the profile of one more of pairs."""
    profile = folder / "profile.folded"
    _many_files()
    with ExitStack() as stack:
        hustings = stack.enter_context(
            servers.hustings(
                CONFIG,
                folder,
                command=("-m", "benchmarks.serving.instant_engine"),
                environment={PROFILE_VARIABLE: str(profile)},
            )
        )
        process = psutil.Process(hustings.process.pid)
        await _burst(hustings.url, "pairs", 50)
        found: dict[str, list[dict[str, Any]]] = {"pairs": [], "chat": []}
        for _ in range(rounds):
            for kind, kept in found.items():
                kept.append(await _round(hustings.url, kind, process))
        hustings.process.send_signal(signal.SIGUSR2)
        await _burst(hustings.url, "pairs", STREAMS)
        hustings.process.send_signal(signal.SIGUSR2)
        await asyncio.sleep(1.0)  # it is written between two of the loop's turns
        memory = process.memory_info().rss / 2**20
    stacks = parse(profile.read_text())
    return {
        "streams": STREAMS,
        "tokens an answer": TOKENS,
        "memory_mib": round(memory),
        **{kind: _figures(kept) for kind, kept in found.items()},
        "profile": {
            "seconds": round(sum(stacks.values()) / 1e6, 2),
            "packages": dict(by_package(stacks)[:12]),
            "functions": dict(self_time(stacks)[:25]),
            "tree": tree(stacks),
        },
    }


async def _burst(url: str, kind: str, count: int) -> list[Heard]:
    """So many streams, all begun at once."""
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": TOKENS, "stream": True}
    if kind == "pairs":
        ask = Ask.post(f"{url}/v1/pairs", body, pair_token, X_Hustings_Voter="bench")
    else:
        ask = Ask.post(f"{url}/v1/chat/completions", body | {"model": "base"}, openai_token)
    return await closed_loop(url, itertools.repeat(ask), workers=count, count=count)


async def _round(url: str, kind: str, process: psutil.Process) -> dict[str, Any]:
    before, began = _computed(process), time.perf_counter()
    heard = await _burst(url, kind, STREAMS)
    seconds, after = time.perf_counter() - began, _computed(process)
    counts = Counter(len(each.tokens_at) for each in heard)
    events = sum(count * many for count, many in counts.items())
    # All were open at once: the last one had begun before the first one ended.
    at_once = max(each.began for each in heard) < min(each.began + each.whole for each in heard)
    return {
        "seconds": seconds,
        "events": events,
        "incomplete": sum(many for count, many in counts.items() if count != TOKENS * (2 if kind == "pairs" else 1)),
        "at_once": at_once,
        "loop_us": 1e6 * (after[0] - before[0]) / events,
        "threads_us": 1e6 * (after[1] - before[1]) / events,
        "first": [each.first for each in heard],
    }


def _computed(process: psutil.Process) -> tuple[float, float]:
    """Seconds that the event loop's thread has computed, and all other threads together."""
    by_thread = {each.id: each.user_time + each.system_time for each in process.threads()}
    loop = by_thread.pop(process.pid)
    return loop, process.cpu_times().user + process.cpu_times().system - loop


def _figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tokens a second": spread([each["events"] / each["seconds"] for each in rounds], 0),
        "event loop's processor time a token, us": spread([each["loop_us"] for each in rounds], 1),
        "other threads' (ledger, relay)": spread([each["threads_us"] for each in rounds], 1),
        "seconds": spread([each["seconds"] for each in rounds]),
        "first token, ms": milliseconds([first for each in rounds for first in each["first"]]),
        "streams": STREAMS * len(rounds),
        "incomplete": sum(each["incomplete"] for each in rounds),
        "all at once": all(each["at_once"] for each in rounds),
    }


def _many_files() -> None:
    """As many connections as streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * STREAMS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * STREAMS), hard))


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The aim: no error (one would have ended the run), none short of its tokens, all open together."""
    return [
        row(
            f"{STREAMS} concurrent streams ({kind}), incomplete",
            figures[kind]["incomplete"],
            "0, all open at once",
            figures[kind]["incomplete"] == 0 and figures[kind]["all at once"],
        )
        for kind in ("pairs", "chat")
    ]


def run(rounds: int, folder: Path, model: Path | None) -> dict[str, Any]:
    """The benchmark."""
    del model
    return asyncio.run(measure(rounds, folder))
