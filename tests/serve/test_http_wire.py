"""The real client over a real socket: connections are kept, what breaks is said in one way, leaving hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from serve.engines.http_wire import AiohttpWire, Unreachable
from serve.engines.vllm_server import events


class Backend:
    """A server of three routes.

    Attributes:
        url: its root.
        peers: the client's ports that were seen, in order.
        left: set when the client of `/endless` has gone.
    """

    def __init__(self) -> None:
        self.url = ""
        self.peers: list[int] = []
        self.authorization: list[str | None] = []
        self.left = asyncio.Event()

    def note(self, request: web.Request) -> None:
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peername")[1])
        self.authorization.append(request.headers.get("Authorization"))

    async def echo(self, request: web.Request) -> web.Response:
        self.note(request)
        return web.Response(body=await request.read(), status=418)

    async def broken(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"data: 1\n\nda")
        assert request.transport is not None
        request.transport.abort()
        return answer

    async def endless(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b"data: 1\n\n")
                await asyncio.sleep(0.01)
        finally:
            self.left.set()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    made = Backend()
    app = web.Application()
    app.add_routes([web.post("/echo", made.echo), web.get("/broken", made.broken), web.get("/endless", made.endless)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def wire() -> AsyncIterator[AiohttpWire]:
    made = AiohttpWire({"Authorization": "Bearer key"})
    yield made
    await made.close()


async def test_a_connection_is_used_again_and_the_key_is_sent(wire: AiohttpWire, backend: Backend) -> None:
    for body in (b"{}", b'{"a":1}'):
        async with wire.send("POST", f"{backend.url}/echo", body, within_s=5) as answer:
            assert (answer.status, await answer.read()) == (418, body)
    assert len(set(backend.peers)) == 1
    assert backend.authorization == ["Bearer key"] * 2


async def test_an_answer_that_breaks_off_is_unreachable(wire: AiohttpWire, backend: Backend) -> None:
    heard = []
    with pytest.raises(Unreachable):
        async with wire.send("GET", f"{backend.url}/broken", None, within_s=5) as answer:
            async for data in events(answer.pieces()):
                heard.append(data)
    assert heard == [b"1"]


async def test_nobody_at_the_address_is_unreachable(wire: AiohttpWire) -> None:
    with pytest.raises(Unreachable):
        async with wire.send("GET", "http://127.0.0.1:1/", None, within_s=5):
            pass


async def test_an_answer_that_takes_too_long_is_unreachable(wire: AiohttpWire, backend: Backend) -> None:
    with pytest.raises(Unreachable):
        async with wire.send("GET", f"{backend.url}/endless", None, within_s=0.05) as answer:
            await answer.read()


async def test_leaving_hangs_up(wire: AiohttpWire, backend: Backend) -> None:
    async with wire.send("GET", f"{backend.url}/endless", None, within_s=None) as answer:
        async for piece in answer.pieces():
            assert piece
            break
    await asyncio.wait_for(backend.left.wait(), 5)


async def test_events_are_found_however_the_body_is_cut() -> None:
    body = b': still here\n\ndata: {"a": 1}\n\ndata:[DONE]\n\n'

    async def cut(size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    for size in range(1, len(body) + 1):
        assert [data async for data in events(cut(size))] == [b'{"a": 1}', b"[DONE]"]
