"""The simulator's way to a Hustings: its public HTTP API, with patience for restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may well succeed."""


class SimulateError(Exception):
    """The simulation can't go on; the message says what to do."""


class ServerGone(SimulateError):
    """Serving did not come back in time."""


class RequestRefused(SimulateError):
    """Serving refuses a request for good."""

    def __init__(self, path: str, status: int, detail: str) -> None:
        super().__init__(f"{path} answered {status}: {detail}")
        self.status = status


class PatientClient:
    """Sends a request until it is answered for good.

    Args:
        http: knows the address and the time limit of one try.
        patience_s: how long one request is tried again.
        on_retry: called before each pause.
    """

    def __init__(self, http: httpx.AsyncClient, patience_s: float, on_retry: Callable[[], None]) -> None:
        self._http = http
        self._patience_s = patience_s
        self._on_retry = on_retry

    async def post(self, path: str, body: dict[str, Any], voter: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the first answer that counts.

        Raises:
            ServerGone: no such answer within the patience.
            RequestRefused: the answer is a 4xx.
        """
        deadline = time.monotonic() + self._patience_s
        pause = FIRST_PAUSE_S
        while True:
            wait, trouble = pause, "no answer"
            try:
                response = await self._http.post(path, json=body, headers={"X-Hustings-Voter": voter})
                if response.is_success:
                    return response.status_code, response.json()
                trouble = _detail(response)
                if response.status_code not in BUSY:
                    raise RequestRefused(path, response.status_code, trouble)
                wait = max(pause, _retry_after(response))
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            if time.monotonic() + wait > deadline:
                raise ServerGone(f"{self._http.base_url}{path} gave no answer for {self._patience_s:.0f} s ({trouble})")
            self._on_retry()
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_S)


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:200]
    known = body if isinstance(body, dict) else {}
    return str(known.get("detail") or known.get("title") or body)[:400]


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("Retry-After", 0)), 30.0)
    except ValueError:
        return 0.0
