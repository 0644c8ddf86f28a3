"""How engines over HTTP are spoken to: by aiohttp, whose parser is C (docs/adr/0074), or by a test's own network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import aiohttp

CONNECT_S = 5.0
KEEP_ALIVE_S = 4.0
"""Seconds that an idle connection is kept: less than the 5 after which a vLLM server hangs up."""


class Unreachable(Exception):
    """The server can't be reached, went away in the middle of an answer, or took too long; the message says which."""


class Answer(Protocol):
    """An answer that has begun to come."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            Unreachable: it didn't come whole.
        """

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, cut anywhere.

        Raises:
            Unreachable: it broke off.
        """


class HttpWire(Protocol):
    """A way to HTTP servers."""

    def send(
        self, method: str, url: str, body: bytes | None, *, within_s: float | None
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request, with JSON where it has a body; leaving the block hangs up on what hasn't been read.

        Args:
            within_s: seconds for the whole answer; None leaves it to the caller.

        Raises:
            Unreachable: no answer began.
        """

    async def close(self) -> None:
        """Close all connections; safe to call twice."""


class AiohttpWire:
    """Keeps `HttpWire` with aiohttp. Make it on the running loop.

    Args:
        headers: sent with every request.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )

    @asynccontextmanager
    async def send(self, method: str, url: str, body: bytes | None, *, within_s: float | None) -> AsyncIterator[Answer]:
        """See `HttpWire.send`."""
        headers = None if body is None else {"Content-Type": "application/json"}
        limits = aiohttp.ClientTimeout(total=within_s, sock_connect=CONNECT_S)
        try:
            response = await self._session.request(
                method, url, data=body, headers=headers, timeout=limits, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        try:
            yield _AiohttpAnswer(response)
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def close(self) -> None:
        """See `HttpWire.close`."""
        await self._session.close()


class _AiohttpAnswer:
    """Keeps `Answer`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
