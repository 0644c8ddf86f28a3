"""A thousand adapters into office, one after another, while people's streams run: `hustings serve` on a tiny model.

Each goes the whole way: published as the trainer does it, announced on Kafka, verified, loaded beside the incumbent,
probed, recorded, switched to, the former one but one unloaded after its last stream. There are four sets of weights
under a thousand names. Streams are greedy, and every answer must be, to the letter, what one set of weights said when
nothing else went on: one that was in office when the stream began. `--rounds` counts hundreds.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving import servers
from benchmarks.serving.client import Ask, AskFailed, Connection, Heard, openai_token
from benchmarks.serving.speakers import Speaker, make_speakers
from benchmarks.serving.stats import milliseconds, percentile, row
from feedback.contracts import ADAPTER_TOPIC
from feedback.event_log import EventProducer, OutgoingRecord
from feedback.kafka_log import KafkaEventLog
from serve.config import ServeConfig
from train.publish import announcement, publish

SWAPS = 100
STREAMS = 4
TOKENS = 48
WARM_UP = 100
"""Swaps before memory is looked at: caches fill."""
CLEAR = 0.001
"""Nats between the likeliest and the next token at every step of a prompt that is used: a hundred times what rounding
does when the same sequence is computed among others."""
STALL_AIM_S = 1.0
GROWTH_AIM = 0.03
CONFIG = ServeConfig(engine_seed=0, max_model_len=256, kv_cache_gib=0.25, max_num_seqs=32, max_lora_rank=8)
PROMPTS = tuple(
    f"what is {thing} of {place}?"
    for thing in ("a good answer", "the weather", "the river", "the question", "a warm idea")
    for place in ("the city", "the garden", "you")
)
TOPIC_WAIT_S = 60.0
ENOUGH_S = 320.0
"""On a busy machine: no swap begins after so many seconds, and the figures are of those that were made."""


class Log:
    """What serving logs, read as it comes: who is in office since when."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.office: dict[int, float] = {}
        """When each number came into office, monotonic clock."""
        self.refused: list[str] = []
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        """Until cancelled."""
        line = ""
        with self._path.open() as lines:
            while True:
                line += lines.readline()
                if line.endswith("\n"):
                    await self._see(line)
                    line = ""
                else:
                    await asyncio.sleep(0.005)

    async def _see(self, line: str) -> None:
        if not line.startswith("{") or "release changed" not in line:
            return
        told = json.loads(line)
        if told["after"] == "rejected":
            self.refused.append(f"{told['adapter']}: {told['reason']}")
        if told["after"] == "in_office":
            async with self._changed:
                self.office[int(told["adapter"].rpartition("-")[2])] = time.perf_counter()
                self._changed.notify_all()

    async def until(self, number: int) -> None:
        """Return once this one is in office.

        Raises:
            AskFailed: not within a minute.
        """
        try:
            async with asyncio.timeout(TOPIC_WAIT_S), self._changed:
                await self._changed.wait_for(lambda: number in self.office)
        except TimeoutError as error:
            raise AskFailed(f"policy-{number:06d} didn't come into office: {self.refused[-1:]}") from error


class Publisher:
    """Publishes number after number, as the trainer does."""

    def __init__(self, adapters: Path, speakers: Sequence[Speaker], fingerprint: str, producer: EventProducer) -> None:
        self._adapters = adapters
        self._speakers = speakers
        self._fingerprint = fingerprint
        self._producer = producer

    def publish(self, number: int) -> None:
        """Folder and announcement."""
        speaker = self._speakers[number % len(self._speakers)]

        def save(work: Path) -> None:
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(speaker.folder / file, work / file)

        folder = publish(
            self._adapters,
            f"policy-{number:06d}",
            save,
            parent=None,
            base_model="tiny",
            base_fingerprint=self._fingerprint,
            lora_rank=speaker.rank,
            reward_model="none",
            snapshot="none",
            probes=(speaker.probe,),
            config={},
            metrics={},
        )
        event = announcement(folder)
        record = OutgoingRecord(ADAPTER_TOPIC, event.name, event.to_bytes(), event.name)
        if failure := self._producer.send([record])[0]:
            raise failure


class People:
    """Streams that never stop coming."""

    def __init__(self, url: str, log: Log, said: dict[tuple[int, str], str], prompts: Sequence[str]) -> None:
        self._url = url
        self._log = log
        self._said = said
        self._prompts = prompts
        self._sets = len({which for which, _ in said})
        self.streams = 0
        self.failed: list[str] = []
        self.mixed: list[str] = []
        self.gaps: list[tuple[float, float]] = []
        """End and length of each wait between two tokens of a stream, seconds."""
        self.firsts: list[float] = []

    async def keep_asking(self, start: int, stop: asyncio.Event) -> None:
        """One stream after another."""
        connection, number = Connection(self._url), start
        while not stop.is_set():
            prompt = self._prompts[number % len(self._prompts)]
            number += 1
            try:
                heard = await connection.ask(greedy(self._url, prompt), keep=True)
            except AskFailed as error:
                self.failed.append(str(error))
                connection.close()
                continue
            self._note(prompt, heard)
        connection.close()

    def _note(self, prompt: str, heard: Heard) -> None:
        self.streams += 1
        self.firsts.append(heard.first)
        times = [heard.began + each for each in heard.tokens_at]
        self.gaps.extend((now, now - before) for before, now in pairwise(times))
        text = text_of(heard)
        holders = self._in_office(heard.began, heard.began + heard.first)
        if text not in {self._said[number % self._sets, prompt] for number in holders}:
            self.mixed.append(f"{prompt} {holders}: {text!r}")

    def _in_office(self, since: float, until: float) -> list[int]:
        """Who may have begun the stream: in office at some moment of its first token's way, give or take 50 ms."""
        times = self._log.office
        before = [number for number, at in times.items() if at <= since - 0.05]
        return [*before[-1:], *(number for number, at in times.items() if since - 0.05 < at <= until + 0.05)]


def greedy(url: str, prompt: str, *, top: int | None = None) -> Ask:
    """The office-holder's likeliest words."""
    body: dict[str, Any] = {
        "model": "hustings",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": top is None,
    }
    if top is not None:
        body |= {"logprobs": True, "top_logprobs": top}
    return Ask.post(f"{url}/v1/chat/completions", body, openai_token)


def text_of(heard: Heard) -> str:
    """The text of a stream's events."""
    found = []
    for event in heard.events:
        if event.startswith(b'data: {"id"'):
            for choice in json.loads(event[6:])["choices"]:
                found.append(choice["delta"].get("content") or "")
    return "".join(found)


async def recite(url: str, which: int) -> dict[tuple[int, str], tuple[str, float]]:
    """What the office-holder says to each prompt while nobody is swapped, and its narrowest choice in nats."""

    async def ask(prompt: str) -> tuple[str, float]:
        connection = Connection(url)
        answer = json.loads((await connection.ask(greedy(url, prompt, top=2), keep=True)).events[0])["choices"][0]
        steps = [[each["logprob"] for each in token["top_logprobs"]] for token in answer["logprobs"]["content"]]
        connection.close()
        return answer["message"]["content"], min(first - second for first, second in steps)

    told = await asyncio.gather(*(ask(prompt) for prompt in PROMPTS))
    return {(which, prompt): each for prompt, each in zip(PROMPTS, told, strict=True)}


async def memory(process: psutil.Process) -> AsyncIterator[float]:
    """Resident memory of serving and its engine, MiB, four times a second."""
    while True:
        yield sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 2**20
        await asyncio.sleep(0.25)


async def measure(swaps: int, folder: Path) -> dict[str, Any]:
    """The benchmark."""
    model, speakers, fingerprint = await asyncio.to_thread(make_speakers, folder / "made")
    environment = {"HUSTINGS_LOG_FORMAT": "json"}
    with ExitStack() as stack:
        hustings = stack.enter_context(servers.hustings(CONFIG, folder, model=model, environment=environment))
        log = Log(folder / "hustings.log")
        following = asyncio.create_task(log.follow())
        kafka = KafkaEventLog(hustings.kafka)
        kafka.ensure_topics([ADAPTER_TOPIC])
        producer = kafka.producer()
        stack.callback(producer.close)
        publisher = Publisher(hustings.config.paths.adapters, speakers, fingerprint, producer)
        told: dict[tuple[int, str], tuple[str, float]] = {}
        for number in range(1, len(speakers) + 1):
            await asyncio.to_thread(publisher.publish, number)
            await log.until(number)
            told |= await recite(hustings.url, number % len(speakers))
        said, prompts = usable(told, len(speakers))
        people = People(hustings.url, log, said, prompts)
        figures = await _swap(people, publisher, log, psutil.Process(hustings.process.pid), swaps, len(speakers))
        following.cancel()
    return {"prompts": len(prompts), **figures}


def usable(told: dict[tuple[int, str], tuple[str, float]], sets: int) -> tuple[dict[tuple[int, str], str], list[str]]:
    """Prompts to which every set of weights gives another answer, and a clear one."""
    prompts = [
        prompt
        for prompt in PROMPTS
        if len({told[which, prompt][0] for which in range(sets)}) == sets
        and min(told[which, prompt][1] for which in range(sets)) > CLEAR
    ]
    if not prompts:
        raise AskFailed("no prompt tells the adapters apart")
    return {key: text for key, (text, _) in told.items()}, prompts


async def _swap(
    people: People, publisher: Publisher, log: Log, process: psutil.Process, swaps: int, done: int
) -> dict[str, Any]:
    stop = asyncio.Event()
    asking = [asyncio.create_task(people.keep_asking(at, stop)) for at in range(STREAMS)]
    weighing: list[tuple[int, float]] = []

    async def weigh() -> None:
        async with aclosing(memory(process)) as sizes:  # type: ignore[type-var]
            async for size in sizes:
                weighing.append((len(log.office), size))

    weigher = asyncio.create_task(weigh())
    windows: list[tuple[float, float]] = []
    began = time.perf_counter()
    for number in range(done + 1, done + swaps + 1):
        since = time.perf_counter()
        if since - began > ENOUGH_S:
            swaps = number - done - 1
            break
        await asyncio.to_thread(publisher.publish, number)
        await log.until(number)
        windows.append((since, time.perf_counter()))
        if not (number - done) % 50:
            print(f"{number - done} swaps, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    stop.set()
    await asyncio.gather(*asking)
    weigher.cancel()
    return {
        "swaps": swaps,
        "seconds": round(seconds, 1),
        "streams": people.streams,
        "tokens a stream": TOKENS,
        "failed": len(people.failed) + len(log.refused),
        "mixed": len(people.mixed),
        "examples": (people.failed + people.mixed + log.refused)[:5],
        "a swap, s": {f"p{round(100 * s)}": round(percentile([b - a for a, b in windows], s), 3) for s in (0.5, 0.99)},
        "stall, s": stalls(people.gaps, windows),
        "first token, ms": milliseconds(people.firsts),
        "memory": growth(weighing, done, swaps),
    }


def stalls(gaps: Sequence[tuple[float, float]], windows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of each swap the longest wait between two tokens of any stream that it overlaps; percentiles over the swaps."""
    ordered = sorted(gaps)
    widest = max(gap for _, gap in gaps)
    worst, at = [], 0
    for since, until in windows:
        while at < len(ordered) and ordered[at][0] < since:
            at += 1
        longest = 0.0
        for end, gap in islice(ordered, at, None):
            if end - widest > until:
                break
            if end - gap <= until:
                longest = max(longest, gap)
        worst.append(longest)
    return {
        "p50": round(percentile(worst, 0.5), 3),
        "p99": round(percentile(worst, 0.99), 3),
        "most": round(max(worst), 3),
        "gap p50": round(percentile([gap for _, gap in gaps], 0.5), 4),
    }


def growth(weighing: Sequence[tuple[int, float]], done: int, swaps: int) -> dict[str, float]:
    """Median memory after the warm-up and at the end, a tenth of the swaps each, and a swap's share of the growth."""
    warm, tenth = min(WARM_UP, swaps // 4), max(5, swaps // 10)
    early = [size for count, size in weighing if done + warm <= count < done + warm + tenth]
    late = [size for count, size in weighing if count >= done + swaps - tenth]
    first, last = percentile(early or [math.nan], 0.5), percentile(late or [math.nan], 0.5)
    return {
        "after warm-up, MiB": round(first, 1),
        "at the end, MiB": round(last, 1),
        "growth": round(last / first - 1, 4),
        "KiB a swap": round(1024 * (last - first) / (swaps - warm - tenth), 2),
    }


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The aims."""
    swaps, stall, grown = figures["swaps"], figures["stall, s"]["p99"], figures["memory"]["growth"]
    return [
        row(f"{swaps} swaps, failed requests", figures["failed"], "0", figures["failed"] == 0),
        row(f"{swaps} swaps, mixed streams", figures["mixed"], "0", figures["mixed"] == 0),
        row(f"{swaps} swaps, stall p99, s", stall, "at most 1", stall <= STALL_AIM_S),
        row(f"{swaps} swaps, memory's growth", grown, f"flat: at most {GROWTH_AIM}", grown <= GROWTH_AIM),
    ]


def run(rounds: int, folder: Path, model: Path | None) -> dict[str, Any]:
    """The benchmark."""
    del model
    return asyncio.run(measure(rounds * SWAPS, folder))
