"""Simulated people who go on voting, as a user would let them: `hustings simulate`, again and again."""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType
from typing import Self

from tests.e2e.stack import Stack, command, environment


class Crowd:
    """Votes in batches until an adapter is published or the block ends; raises if any batch failed.

    A cycle on few votes may be refused, rightly, even after its PPO, and the next one then waits for new votes: so
    another batch comes whenever the trainer has nothing to do and there is no adapter yet. These people make no
    mistakes: a random model's answers are so alike that it would take hundreds of noisy votes to tell what they like.
    """

    def __init__(self, stack: Stack, *, batch: int, seed: int, until: str) -> None:
        self._stack, self._batch, self._seed, self._until = stack, batch, seed, until
        self._stop = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._vote, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=400)
        if kind is None:
            assert not self._thread.is_alive(), "the last batch of votes does not end"
            assert self._failure == ""

    def _vote(self) -> None:
        seed = self._seed
        while not self._stop.is_set() and not self._failure and self._stack.published() < self._until:
            arguments = ["--url", self._stack.url, "--votes", str(self._batch), "--seed", str(seed)]
            arguments += ["--decisive", "--utility", "digits", "--noise", "0"]
            done = subprocess.run(
                command("simulate", *arguments), env=environment(), capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                self._failure = done.stdout + done.stderr
            seed += 1
            while self._stack.phase() not in {"idle", "failed"} and not self._stop.wait(0.25):
                pass
