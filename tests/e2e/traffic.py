"""People who keep chatting while something happens behind them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

PEOPLE = 3
PAUSE_S = 0.2
"""Between a person's turns: the trainer needs the processor too, and every pair is a prompt that it will read."""


@dataclass
class Traffic:
    """Streams pair after pair, one thread a person; counts what ended well and notes what didn't."""

    url: str
    finished: int = 0
    failures: list[str] = field(default_factory=list)
    pair_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._chat, args=(n,), daemon=True) for n in range(PEOPLE)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _chat(self, person: int) -> None:
        with httpx.Client(base_url=self.url, headers={"X-Hustings-Voter": f"watcher-{person}-of-the-swap"}) as http:
            turn = 0
            while not self._stop.wait(PAUSE_S):
                turn += 1
                try:
                    pair_id = self._pair(http, f"question {turn} of {person}")
                except Exception as error:  # noqa: BLE001 - every way to fail is a finding
                    with self._lock:
                        self.failures.append(f"{type(error).__name__}: {error}")
                    return
                with self._lock:
                    self.finished += 1
                    self.pair_ids.append(pair_id)

    @staticmethod
    def _pair(http: httpx.Client, question: str) -> str:
        body = {"messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": 48}
        pair_id, ended = "", False
        with http.stream("POST", "/v1/pairs", json=body, timeout=60) as answer:
            if answer.status_code != 200:
                raise AssertionError(f"{answer.status_code}: {answer.read().decode()[:300]}")
            event = ""
            for line in _lines(answer):
                if line.startswith("event:"):
                    event = line.removeprefix("event:").strip()
                elif line.startswith("data:"):
                    data = json.loads(line.removeprefix("data:"))
                    if event == "pair":
                        pair_id = data["pair_id"]
                    elif event == "error":
                        raise AssertionError(f"error event: {data}")
                    ended = ended or event == "done"
        assert ended, "the stream broke off before its done event"
        return pair_id


def _lines(answer: httpx.Response) -> Iterator[str]:
    """Lines of an event stream: only line feeds end them. (httpx's own also break at U+0085, which a model may say.)"""
    rest = b""
    for chunk in answer.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)
