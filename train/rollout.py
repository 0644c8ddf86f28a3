"""Sampling answers for training: one protocol, from the trainer's own sampler or from the serving engine.

Both record the sampled ids and their log-probs under the processed distribution (temperature applied, no top-p, no
top-k): training uses those ids, never re-tokenised text.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx

from feedback.fingerprint import adapter_digest
from train.errors import RolloutsUnavailable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled answer.

    Attributes:
        prompt_ids: what it answers.
        response_ids: the sampler's ids, the end-of-turn token included when it came.
        logprobs: of each id under the sampling distribution.
        finish_reason: "stop" after the end-of-turn token, "length" when it was cut off.
        states: (T, H) last hidden state in which each token was chosen, where the sampler keeps it.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    states: Tensor | None = field(default=None, compare=False, repr=False)


class Rollouts(Protocol):
    """Where answers of the current policy come from."""

    @property
    def local(self) -> bool:
        """Whether log-probs (and states) are the trainer's own, equal to its passes up to rounding."""

    def generate(
        self, prompts: Sequence[tuple[int, ...]], n: int, *, max_tokens: int, temperature: float, seed: int
    ) -> list[Sample]:
        """Sample `n` answers to each prompt from the policy as it is now; the first prompt's come first."""

    def close(self) -> None:
        """Give back what is held elsewhere."""


class ServingRollouts:
    """Samples from the serving engine's idle capacity: each time the policy goes over under a new name."""

    local = False

    def __init__(
        self,
        url: str,
        token: str,
        folder: Path,
        save: Callable[[Path], None],
        *,
        run: str,
        attempts: int = 6,
        timeout_s: float = 300.0,
        prompts_per_request: int = 16,
        client: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        url: of serving, without a path.
        token: the operator's.
        folder: `DataPaths.rollout_adapters`, which serving reads from.
        save: writes the current policy as a PEFT folder.
        run: makes names unique, `[0-9a-z-]`, at most 32 characters.
        attempts: tries of a request.
        timeout_s: of a request.
        prompts_per_request: at once, so that no request grows too long.
        client: for tests.
        sleep: waits between tries; for tests.
        """
        self._client = client or httpx.Client(timeout=timeout_s, trust_env=False)
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._folder = folder
        self._save = save
        self._run = run
        self._attempts = attempts
        self._size = prompts_per_request
        self._sleep = sleep
        self._count = 0

    def generate(
        self, prompts: Sequence[tuple[int, ...]], n: int, *, max_tokens: int, temperature: float, seed: int
    ) -> list[Sample]:
        """Hand the policy over, sample, take it back.

        Raises:
            RolloutsUnavailable: serving refused, or did not answer in all attempts.
        """
        name = f"rollout-{self._run}-{self._count}"
        self._count += 1
        try:
            self._save(self._folder / name)
            digest = adapter_digest(self._folder / name)
        except BaseException:  # nothing is loaded yet; a full disk wants its room back
            shutil.rmtree(self._folder / name, ignore_errors=True)
            raise
        try:
            self._ask("PUT", f"/v1/rollout-adapters/{name}", {"digest": digest})
            return self._sampled(
                name, prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed, digest=digest
            )
        finally:
            self._take_back(name)

    def answers_of(
        self,
        adapter: str | None,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[Sample]:
        """Sample from an adapter that serving has loaded (None: the base), at the priority of rollouts.

        Raises:
            RolloutsUnavailable: serving refused, or did not answer in all attempts.
        """
        return self._sampled(adapter, prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed)

    def _sampled(
        self,
        adapter: str | None,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        digest: str | None = None,
    ) -> list[Sample]:
        samples: list[Sample] = []
        for start in range(0, len(prompts), self._size):
            part = prompts[start : start + self._size]
            body = {
                "adapter": adapter,
                "prompts": [list(prompt) for prompt in part],
                "n": n,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed + start * n,
            }
            if digest is not None:  # which of the servings answers isn't known: each loads this one, and no other
                body["digest"] = digest
            samples += _read_samples(part, self._ask("POST", "/v1/rollouts", body).json(), n)
        return samples

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _take_back(self, name: str) -> None:
        try:
            self._ask("DELETE", f"/v1/rollout-adapters/{name}", None)
        finally:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """One request with retries: doubling waits from half a second, or what Retry-After says (a minute at most)."""
        reason = ""
        for attempt in range(self._attempts):
            if attempt:
                self._sleep(min(0.5 * 2**attempt, 60.0))
            try:
                response = self._client.request(method, self._url + path, json=body, headers=self._headers)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.is_success or (method == "DELETE" and response.status_code == httpx.codes.NOT_FOUND):
                return response
            reason = f"{response.status_code}: {response.text[:200]}"
            if response.status_code not in _PASSING:
                break
            self._sleep(min(_retry_after(response), 60.0))
        raise RolloutsUnavailable(
            f"{method} {self._url}{path} failed ({reason}); is serving up and the operator token right?"
        )


def run_of(cycle: str) -> str:
    """A name for what one process hands over in a cycle.

    The process's number doesn't do: in a container it is the same after each start, and serving takes no second adapter
    under a name.
    """
    return f"{cycle}-{secrets.token_hex(4)}"


_PASSING = frozenset({404, 429, 500, 502, 503, 504})
"""What may be otherwise soon; 404 too: a shared folder shows what was saved to others after a while."""


def _retry_after(response: httpx.Response) -> float:
    stated = response.headers.get("retry-after", "")
    return float(stated) if stated.isdigit() else 0.0


def _read_samples(prompts: Sequence[tuple[int, ...]], answer: dict[str, Any], n: int) -> list[Sample]:
    """Check and read serving's answer; an aborted completion is an error, not a short answer."""
    samples = []
    for prompt, completions in zip(prompts, answer["completions"], strict=True):
        if len(completions) != n:
            raise RolloutsUnavailable(f"serving gave {len(completions)} answers to a prompt, {n} were asked for")
        for completion in completions:
            ids, logprobs = tuple(completion["token_ids"]), tuple(completion["logprobs"])
            if completion["finish_reason"] not in {"stop", "length"} or not ids or len(ids) != len(logprobs):
                raise RolloutsUnavailable(
                    f"serving gave an unusable answer: {completion['finish_reason']}, {len(ids)} ids"
                )
            samples.append(Sample(prompt, ids, logprobs, completion["finish_reason"]))
    return samples
