"""The load client, a process of its own: so many connections, each sends a vote, waits for the answer, sends the next.

    python -m benchmarks.votes.load --port PORT --requests FILE --connections 32

A plain socket protocol: an HTTP library would need more of the processor than the server that it is to measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Voter(asyncio.Protocol):
    """One connection. Takes the next request as soon as the last one is answered, until there is none."""

    def __init__(self, requests: Iterator[bytes], seconds: list[float], statuses: Counter[str]) -> None:
        self._requests = requests
        self._seconds = seconds
        self._statuses = statuses
        self._buffer = b""
        self._began = 0.0
        self._transport: asyncio.Transport | None = None
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        """Wait for the whole answer: head, then as many bytes as it says."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            return
        self._seconds.append(time.perf_counter() - self._began)
        self._statuses[head[9:12].decode()] += 1
        self._buffer = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server hung up, or we are done."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server hung up"))

    def _next(self) -> None:
        assert self._transport is not None
        request = next(self._requests, None)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(request)


def as_http(line: str) -> bytes:
    """A request out of a line of the file."""
    token, body = line.split("\t", 1)
    return (
        f"POST /v1/votes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-hustings-voter: {token}\r\n"
        f"content-length: {len(body.encode())}\r\n\r\n{body}"
    ).encode()


async def load(port: int, requests: list[bytes], connections: int) -> dict[str, object]:
    """Send them all; votes a second, latencies in milliseconds, statuses."""
    seconds: list[float] = []
    statuses: Counter[str] = Counter()
    left = iter(requests)
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    voters = []
    for _ in range(connections):
        _, voter = await loop.create_connection(lambda: Voter(left, seconds, statuses), "127.0.0.1", port)
        voters.append(voter)
    await asyncio.gather(*(voter.done for voter in voters))
    took = time.perf_counter() - began
    seconds.sort()
    return {
        "connections": connections,
        "votes": len(seconds),
        "votes_per_s": round(len(seconds) / took),
        "p50_ms": round(seconds[len(seconds) // 2] * 1e3, 2),
        "p99_ms": round(seconds[int(len(seconds) * 0.99)] * 1e3, 2),
        "max_ms": round(seconds[-1] * 1e3, 2),
        "statuses": dict(statuses),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--connections", type=int, required=True)
    arguments = parser.parse_args()
    requests = [as_http(line) for line in arguments.requests.read_text().splitlines()]
    print(json.dumps(asyncio.run(load(arguments.port, requests, arguments.connections))))


if __name__ == "__main__":
    main()
