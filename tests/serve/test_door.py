"""What a client may do before its request is whole: on a real server, byte by byte."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve import door
from serve.app import ServeDeps, create_app
from serve.config import ServeConfig
from serve.door import AHEAD, Door
from serve.main import KEEP_ALIVE_S, _Uvicorn, listen, uvicorn_config
from serve.open_files import allow_open_files
from tests.serve.conftest import TOKEN, client_of

HEAD = b"POST /v1/votes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE_S = 20


class Line:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def say_no_more(self) -> None:
        self._writer.write_eof()

    async def hear(self) -> bytes:
        """The head and body of the next answer."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self._reader.readexactly(length)

    async def hear_some(self) -> bytes:
        """What is there; nothing at the end."""
        return await self._reader.read(1 << 14)

    async def hear_all(self) -> bytes:
        """All that comes until the server hangs up."""
        try:
            return await self._reader.read()
        except ConnectionResetError:
            return b""


Dial = Callable[[], Any]


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[Dial]:
    """Serve as `serve.main` does; gives what opens connections."""
    sock = listen("127.0.0.1", 0)
    config: ServeConfig = app.state.deps.config
    server = _Uvicorn(uvicorn_config(app, config.model_copy(update={"shutdown_grace_s": 0.0})))
    server.config.lifespan = "off"
    running = asyncio.create_task(server.serve(sockets=[sock]))
    writers: list[asyncio.StreamWriter] = []

    async def dial(window: int | None = None) -> Line:
        ours = socket.socket()
        if window is not None:  # bytes that the system takes for us before we read them
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_connect(ours, sock.getsockname())
        reader, writer = await asyncio.open_connection(sock=ours, limit=window or 2**16)
        writers.append(writer)
        return Line(reader, writer)

    try:
        async with asyncio.timeout(PATIENCE_S):
            yield dial
    finally:
        for writer in writers:
            writer.transport.abort()  # closing would wait until the server has taken all
        server.should_exit = server.force_exit = True
        await running
        sock.close()


@pytest.fixture
async def dial(make_deps: Callable[..., ServeDeps]) -> AsyncIterator[Dial]:
    async with serving(create_app(make_deps(stalled_client_s=0.2))) as made:
        yield made


@pytest.mark.parametrize("said", [b"", b"GET /hea", HEAD, WHOLE + b"GET /hea"])
async def test_who_does_not_finish_a_head_is_hung_up_on(
    dial: Dial, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Uvicorn waited for ever: two thousand such connections take all of a process's files."""
    monkeypatch.setattr(door, "HEAD_S", 0.2)
    line = await dial()
    await line.say(said)
    heard = await line.hear_all()
    assert heard.count(b"HTTP/1.1 200") == said.count(WHOLE)


UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("asked", ["healthz", "votes"])
async def test_what_follows_another_upgrade_is_no_request(dial: Dial, asked: str) -> None:
    """Uvicorn answered without the body and took that for the next request: a way past a proxy."""
    line = await dial()
    if asked == "votes":
        await line.say(HEAD + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(WHOLE))
    else:
        await line.say(WHOLE.replace(b"\r\n\r\n", b"\r\n" + UPGRADE + b"\r\n"))
    answer = await line.hear()
    await line.say(WHOLE)
    assert answer.startswith(b"HTTP/1.1 200" if asked == "healthz" else b"HTTP/1.1 400")
    assert b"connection: close" in answer
    assert await asyncio.wait_for(line.hear_all(), PATIENCE_S) == b""


async def test_an_empty_line_does_not_keep_a_connection(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte ends uvicorn's own wait, and this one began no other."""
    monkeypatch.setattr(door, "HEAD_S", 0.2)
    line = await dial()
    await line.say(WHOLE)
    assert (await line.hear()).startswith(b"HTTP/1.1 200")
    await line.say(b"\r\n")
    assert await asyncio.wait_for(line.hear_all(), PATIENCE_S) == b""


async def test_a_head_without_an_end_is_cut_short(dial: Dial) -> None:
    """Uvicorn kept all of it: one client took a hundred megabytes in a second."""
    line = await dial()
    with pytest.raises(ConnectionError):
        await line.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(200):
            await line.say(b"X-%d: " % number + b"a" * 60_000 + b"\r\n")
            await asyncio.sleep(0)
        pytest.fail("twelve megabytes of head were taken")


async def test_trailers_without_an_end_are_cut_short_too(dial: Dial) -> None:
    line = await dial()
    with pytest.raises(ConnectionError):
        await line.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        for number in range(200):
            await line.say(b"X-%d: " % number + b"a" * 60_000 + b"\r\n")
            await asyncio.sleep(0)
        pytest.fail("twelve megabytes of trailers were taken")


async def test_a_body_in_chunks_of_a_byte_is_taken(dial: Dial) -> None:
    body = b'{"pair_id": "' + b"x" * 30_000 + b'", "choice": "a"}'
    line = await dial()
    await line.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await line.say(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    assert (await line.hear()).startswith(b"HTTP/1.1 422")
    await line.say(WHOLE)
    assert (await line.hear()).startswith(b"HTTP/1.1 200")


async def test_a_body_that_comes_with_its_head_is_no_head(dial: Dial) -> None:
    """Votes that come whole go around uvicorn's own way (`serve.direct`), and are counted all the same."""
    body = b'{"pair_id": "' + b"x" * 300_000 + b'", "choice": "a"}'
    line = await dial()
    for _ in range(2):
        await line.say(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (await line.hear()).startswith(b"HTTP/1.1 422")


async def test_a_connection_is_kept_after_a_vote(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HEAD_S", 0.2)
    body = b'{"pair_id": "pair_no", "choice": "a"}'
    line = await dial()
    await line.say(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert (await line.hear()).startswith(b"HTTP/1.1 404")
    await asyncio.sleep(0.4)  # for the end of a wait that must not have begun there is nothing to await
    await line.say(WHOLE)
    assert (await line.hear()).startswith(b"HTTP/1.1 200")


async def test_a_body_that_stops_coming_is_not_waited_for(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HEAD_S", 0.2)
    line = await dial()
    await line.say(HEAD + b'Content-Length: 100\r\n\r\n{"pair_id"')
    answer = await line.hear()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer
    assert await line.hear_all() == b"", "and what is still to come isn't waited for either"


async def test_a_body_that_drips_is_not_waited_for_beyond_a_requests_deadline(
    make_deps: Callable[..., ServeDeps],
) -> None:
    async with serving(create_app(make_deps(request_timeout_s=0.5))) as dial:
        line = await dial()
        await line.say(HEAD + b"Content-Length: 100000\r\n\r\n")
        heard = asyncio.create_task(line.hear())
        while not heard.done():
            await line.say(b" ")
            await asyncio.sleep(0.02)  # the pace of the drip
        assert (await heard).startswith(b"HTTP/1.1 408")


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the server has let go of a connection."""
    told, real = asyncio.Event(), Door.connection_lost

    def connection_lost(self: Door, error: Exception | None) -> None:
        told.set()
        real(self, error)

    monkeypatch.setattr(Door, "connection_lost", connection_lost)
    return told


ASK_MUCH = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"


async def test_who_reads_nothing_is_hung_up_on(dial: Dial, lost: asyncio.Event) -> None:
    """It was waited for without an end, with all that was asked and answered on that connection."""
    line = await dial(4096)
    await line.say((ASK_MUCH + b"\r\n") * 100)
    await asyncio.wait_for(lost.wait(), PATIENCE_S)


@pytest.mark.parametrize("who", ["server", "client"])
async def test_who_reads_nothing_before_a_connection_ends_is_hung_up_on(
    dial: Dial, lost: asyncio.Event, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Closing waits until all that was written is taken."""
    real, answered = Door.connection_made, asyncio.Event()
    complete = Door.on_response_complete

    def on_response_complete(self: Door) -> None:
        complete(self)
        if not self.pipeline:
            answered.set()

    def connection_made(self: Door, transport: Any) -> None:
        transport.set_write_buffer_limits(high=1 << 30)  # so that only the end is waited for, no piece before it
        real(self, transport)

    monkeypatch.setattr(Door, "connection_made", connection_made)
    monkeypatch.setattr(Door, "on_response_complete", on_response_complete)
    line = await dial(4096)
    end = b"Connection: close\r\n\r\n" if who == "server" else b"\r\n"
    await line.say((ASK_MUCH + b"\r\n") * 100 + ASK_MUCH + end)
    if who == "client":
        await asyncio.wait_for(answered.wait(), PATIENCE_S)
        line.say_no_more()
    await asyncio.wait_for(lost.wait(), PATIENCE_S)


async def test_who_reads_slowly_gets_it_all(dial: Dial) -> None:
    line = await dial(4096)
    await line.say((ASK_MUCH + b"\r\n") * 30 + ASK_MUCH + b"Connection: close\r\n\r\n")
    heard, took = b"", asyncio.get_running_loop().time()
    while some := await line.hear_some():
        heard += some
        await asyncio.sleep(0.003)  # the pace of the reader
    took = asyncio.get_running_loop().time() - took
    assert heard.count(b"HTTP/1.1 200") == 31
    assert took > 2 * 0.2, "it took longer than a reader of nothing is waited for"


async def test_nobody_asks_without_end_before_they_were_answered(make_deps: Callable[..., ServeDeps]) -> None:
    """A packet holds thousands of requests, and uvicorn kept each, for as long as the first took."""
    deps = make_deps()
    engine: Any = deps.engine
    engine.gate.clear()  # so that the first is not answered
    async with serving(create_app(deps)) as dial:
        line = await dial()
        body = b'{"messages": [{"role": "user", "content": "Hello?"}]}'
        slow = HEAD.replace(b"votes", b"pairs") + b"Content-Length: %d\r\n\r\n" % len(body) + body
        await line.say(slow + WHOLE * (AHEAD + 1))
        heard = await line.hear_all()
        engine.gate.set()
    assert heard.startswith(b"HTTP/1.1 400")
    assert b"read what you are answered first" in heard


async def test_as_many_as_may_wait_are_answered(dial: Dial) -> None:
    line = await dial()
    await line.say(WHOLE * AHEAD)
    for _ in range(AHEAD):
        assert (await line.hear()).startswith(b"HTTP/1.1 200")


async def test_a_strangers_rollouts_are_refused_unread(client: httpx.AsyncClient) -> None:
    """Sixteen megabytes of JSON took the event loop a second before the token was looked at."""

    async def body() -> AsyncIterator[bytes]:
        pytest.fail("it was read")
        yield b""

    answer = await client.post("/v1/rollouts", content=body(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 422), ("wrong", 401)])
async def test_only_the_operators_rollouts_may_be_large(
    make_deps: Callable[..., ServeDeps], token: str, status: int
) -> None:
    async with client_of(create_app(make_deps(max_body_bytes=1024))) as client:
        body = b'{"adapter": null, "max_tokens": 1, "prompts": [[' + b" " * 8000 + b"]]}"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        assert (await client.post("/v1/rollouts", content=body, headers=headers)).status_code == status
        over = await client.post("/v1/rollouts", content=body + b" " * 9000, headers=headers)
        assert over.status_code == (413 if status == 422 else 401)


def test_a_kept_connection_outlives_what_proxies_keep_theirs(app: FastAPI) -> None:
    """Or a proxy sends a request on one that is just being closed, and answers 502; nginx and ALB keep 60 s."""
    assert KEEP_ALIVE_S > 60
    assert uvicorn_config(app, ServeConfig()).timeout_keep_alive == KEEP_ALIVE_S


def test_more_people_may_keep_connections_than_a_login_may_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1] if before[1] != resource.RLIM_INFINITY else 10**9
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert allow_open_files(4096) == min(4096, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(4096, hard), before[1])
        assert allow_open_files(512) == min(4096, hard), "it is never lowered"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
