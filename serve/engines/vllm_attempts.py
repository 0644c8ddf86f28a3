"""Which of several vLLM servers a request tries, and when another one may take over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serve.engines.base import AdapterNotLoaded, AnswerBroken, EngineError, EngineOverloaded, EngineUnavailable
from serve.engines.vllm_server import ServerLost, VllmServer


class Attempts:
    """Servers to try for one request, least loaded first; the last failure ends it.

    Attributes:
        begun: something has been handed on, so that no other server may take over.
    """

    def __init__(self, servers: Sequence[VllmServer], adapter: str | None) -> None:
        self._servers = servers
        self._adapter = adapter
        self._tried: set[VllmServer] = set()
        self._last: EngineError | None = None
        self.begun = False

    def __iter__(self) -> Iterator[VllmServer]:
        while True:
            fit = [server for server in self._servers if server not in self._tried and self._can(server)]
            if not fit:
                what = f" with {self._adapter}" if self._adapter else ""
                raise self._last or EngineUnavailable(f"no vLLM server can answer{what} now; try again shortly")
            yield min(fit, key=lambda server: server.in_flight)

    @contextmanager
    def another_may_do(self, server: VllmServer) -> Iterator[None]:
        """Pass over a server that is lost, full, breaks off or has lost the adapter, unless something has begun."""
        try:
            yield
        except (ServerLost, AnswerBroken, EngineOverloaded, AdapterNotLoaded) as error:
            if isinstance(error, AdapterNotLoaded) and self._adapter is not None:
                server.confirmed.discard(self._adapter)
                error = ServerLost(f"{server.url} has lost {self._adapter}; it is loaded again")
            if self.begun:
                raise error from None
            self._tried.add(server)
            self._last = error

    def _can(self, server: VllmServer) -> bool:
        return server.up and (self._adapter is None or self._adapter in server.confirmed)
