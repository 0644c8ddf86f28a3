"""Voters over HTTP, as clients are: they ask for pairs, vote, and say the same again until it is answered.

A vote's idempotency key is its pair and its voter: the same vote again is answered with the first one's id.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from feedback.contracts import Choice

CHOICES: tuple[Choice, ...] = ("a", "b", "a", "b", "tie", "both_bad")
TIMEOUT_S = 10.0
PAUSE_S = 0.2
RETRY_S = 0.1
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LIKED = "e"
"""The answer with more of it is preferred: something that a reward model can learn."""
WHIMS = 0.2
"""Share of the votes that say anything."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A vote that was answered with 201, or 200 where an earlier attempt had come through after all.

    Attributes:
        said: what was voted, to be found again: choice and comment.
        at: seconds, monotonic, when the answer came.
        waited_s: from the first attempt to the answer.
        attempts: requests that it took.
    """

    vote_id: str
    pair_id: str
    conversation_id: str
    choice: Choice
    comment: str
    at: float
    waited_s: float
    attempts: int


@dataclass(slots=True)
class Heard:
    """What the voters were told, in all; a conversation's votes in the order in which they were acknowledged."""

    votes: list[Acknowledged] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self) -> int:
        """Acknowledged votes so far."""
        return len(self.votes)


def choose(pair: Mapping[str, Any], rng: random.Random) -> Choice:
    """A vote on a pair as it was answered: by the voters' taste, or by a whim."""
    if rng.random() < WHIMS:
        return rng.choice(CHOICES)
    worth = {one["position"]: one["message"]["content"].count(LIKED) for one in pair["completions"]}
    return "tie" if worth["a"] == worth["b"] else "a" if worth["a"] > worth["b"] else "b"


class Voters:
    """Some voters at once, each with its own conversations.

    Args:
        urls: roots of the servings; a voter whose request fails turns to the next.
        pause_s: a voter's rest after each vote.
        turns: votes in a conversation before the voter begins another.
    """

    def __init__(self, urls: Sequence[str], *, count: int, seed: int, pause_s: float = PAUSE_S, turns: int = 6) -> None:
        self.heard = Heard()
        self._urls = urls
        self._pause_s = pause_s
        self._turns = turns
        self._stop = threading.Event()
        self._abandoned = threading.Event()
        self._threads = [
            threading.Thread(target=self._vote, args=(f"voter-{number}", random.Random(seed * 1_000 + number)))
            for number in range(count)
        ]

    def start(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """No new pairs; each brings the vote in hand to its answer.

        Raises:
            TimeoutError: one is still waiting for an answer: serving is not there.
        """
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError(f"a voter had no answer for {timeout_s:.0f} s after the last restart")

    def abandon(self) -> None:
        """Give up what isn't answered: the trial has failed."""
        self._stop.set()
        self._abandoned.set()
        for thread in self._threads:
            thread.join()

    def _vote(self, name: str, rng: random.Random) -> None:
        with httpx.Client(timeout=TIMEOUT_S, headers={"X-Hustings-Voter": name}) as http:
            while not self._stop.is_set():
                self._conversation(http, rng)

    def _conversation(self, http: httpx.Client, rng: random.Random) -> None:
        conversation: str | None = None
        for _ in range(self._turns):
            if self._stop.wait(self._pause_s * rng.uniform(0.5, 1.5)):
                return
            question = "".join(rng.choices(LETTERS, k=12))
            body: dict[str, Any] = {"messages": [{"role": "user", "content": f"what of {question}?"}], "max_tokens": 24}
            if conversation is not None:
                body["conversation_id"] = conversation
            pair, _ = self._ask(http, "/v1/pairs", body)
            if pair is None:
                return
            conversation = pair["conversation_id"]
            with self.heard.lock:
                self.heard.pairs.append(pair["pair_id"])
            self._cast(http, pair, rng)

    def _cast(self, http: httpx.Client, pair: Mapping[str, Any], rng: random.Random) -> None:
        choice, comment = choose(pair, rng), "".join(rng.choices(LETTERS, k=16))
        began = time.monotonic()
        body = {"pair_id": pair["pair_id"], "choice": choice, "comment": comment}
        answer, attempts = self._ask(http, "/v1/votes", body)
        if answer is None:
            return
        now = time.monotonic()
        vote = Acknowledged(
            vote_id=answer["vote_id"],
            pair_id=pair["pair_id"],
            conversation_id=pair["conversation_id"],
            choice=choice,
            comment=comment,
            at=now,
            waited_s=now - began,
            attempts=attempts,
        )
        with self.heard.lock:
            self.heard.votes.append(vote)

    def _ask(self, http: httpx.Client, path: str, body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, int]:
        """The answer and the attempts that it took; None after an answer that no retry can mend (a fault)."""
        attempts = 0
        while not self._abandoned.is_set():
            url = self._urls[attempts % len(self._urls)]
            attempts += 1
            try:
                response = http.post(f"{url}{path}", json=body)
            except httpx.TransportError as error:
                self._note(f"{path} {type(error).__name__}")
            else:
                self._note(f"{path} {response.status_code}")
                if response.is_success:
                    answer: dict[str, Any] = response.json()
                    return answer, attempts
                if response.status_code not in {429, 503}:
                    with self.heard.lock:
                        self.heard.faults.append(f"{path} answered {response.status_code}: {response.text[:300]}")
                    if response.status_code < 500:
                        return None, attempts
            self._abandoned.wait(RETRY_S)
        return None, attempts

    def _note(self, answer: str) -> None:
        with self.heard.lock:
            self.heard.answers[answer] += 1
