"""A vote that comes whole goes around ASGI, on a real connection, and is answered as on the long way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from feedback.ledger import Ledger
from serve.app import ServeDeps, create_app
from serve.config import ServeConfig
from serve.main import _Uvicorn, listen, uvicorn_config
from tests.serve.conftest import MakeDeps, client_of
from tests.serve.test_leaving import eventually
from tests.serve.test_votes import ASK

ANN = {"x-hustings-voter": "ann"}


class Way:
    """Sits around the app and notes who comes by."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._seen.append(scope["path"])
        await self._app(scope, receive, send)


class Line:
    """A connection to a server, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def ask(self, *packets: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(b"".join(packets))
        return await self.answer()

    async def ended(self) -> bool:
        """Whether the server hangs up with nothing left to say, long before an idle connection's time is up."""
        async with asyncio.timeout(2):
            return await self._reader.read() == b""


class Site:
    """A server on a port."""

    def __init__(self, server: _Uvicorn, port: int, long_way: list[str], app: FastAPI, running: asyncio.Task[None]):
        self.server = server
        self.port = port
        self.long_way = long_way
        self.app = app
        self.running = running
        self._lines: list[Line] = []

    async def line(self) -> Line:
        line = Line(*await asyncio.open_connection("127.0.0.1", self.port))
        self._lines.append(line)
        return line

    async def a_pair(self) -> str:
        async with client_of(self.app, **ANN) as client:
            pair_id = (await client.post("/v1/pairs", json=ASK)).json()["pair_id"]
        self.long_way.clear()
        return str(pair_id)

    async def close(self) -> None:
        self.server.should_exit = True
        for line in self._lines:
            line.writer.close()
        await self.running


@contextlib.asynccontextmanager
async def serving(deps: ServeDeps) -> AsyncIterator[Site]:
    app = create_app(deps)
    long_way: list[str] = []
    app.add_middleware(Way, seen=long_way)
    server = _Uvicorn(uvicorn_config(app, ServeConfig()))
    with listen("127.0.0.1", 0) as sock:
        site = Site(server, sock.getsockname()[1], long_way, app, asyncio.create_task(server.serve([sock])))
        await eventually(lambda: server.started)
        try:
            yield site
        finally:
            await site.close()


@pytest.fixture
async def site(deps: ServeDeps) -> AsyncIterator[Site]:
    async with serving(deps) as made:
        yield made


def post(body: Any, path: str = "/v1/votes", version: str = "1.1", **headers: str) -> tuple[bytes, bytes]:
    """Head and body of a request by Ann."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"host": "localhost", "content-type": "application/json", "content-length": str(len(content))}
    told |= ANN | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/{version}", *(f"{name}: {value}" for name, value in told.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode(), content


def vote(pair_id: str, choice: str = "a", **more: Any) -> dict[str, Any]:
    return {"pair_id": pair_id, "choice": choice, **more}


async def slowly(site: Site, line: Line, head: bytes, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Ask in two packets: the second goes when the first has been understood."""
    before = len(site.long_way)
    line.writer.write(head)
    await eventually(lambda: len(site.long_way) > before)
    return await line.ask(body)


async def test_a_vote_that_comes_whole_goes_around_and_is_on_the_disk(site: Site, ledger: Ledger) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    status, headers, body = await line.ask(*post(vote(pair_id)))
    assert (status, site.long_way) == (201, [])
    assert headers["content-type"] == "application/json"
    (kept,) = ledger.votes_between()
    assert json.loads(body)["vote_id"] == kept.vote_id
    assert json.loads(body)["reveal"] == {"a": "base", "b": "base"}


async def test_a_thumb_goes_around_too(make_deps: MakeDeps) -> None:
    async with serving(make_deps(chat={"mode": "chat", "paired_share": 0.0})) as site:
        async with client_of(site.app, **ANN) as client:
            answer = (await client.post("/v1/turns", json=ASK)).json()
        site.long_way.clear()
        line = await site.line()
        status, _, body = await line.ask(*post({"answer_id": answer["answer_id"], "thumb": "up"}, "/v1/thumbs"))
        assert (status, json.loads(body)["thumb"], site.long_way) == (201, "up", [])


CASES: dict[str, tuple[Callable[[str], dict[str, Any]], dict[str, str], int]] = {
    "again": (lambda pair_id: vote(pair_id, "b"), {}, 200),
    "another choice": (lambda pair_id: vote(pair_id, "tie"), {}, 409),
    "no such pair": (lambda pair_id: vote("pair_no"), {}, 404),
    "another's pair": (vote, {"x_hustings_voter": "bob"}, 403),
    "more than two answers": (lambda pair_id: vote(pair_id) | {"choice": None, "ranking": [["a"], ["b"]]}, {}, 422),
    "an odd token": (vote, {"x_hustings_voter": "a b"}, 400),
    "a stranger": (vote, {"x_hustings_voter": ""}, 403),
    "a stranger by https": (vote, {"x_hustings_voter": "", "x_forwarded_proto": "https"}, 403),
    "a request id": (lambda pair_id: vote(pair_id, "b"), {"x_request_id": "mine"}, 200),
    "an odd request id": (lambda pair_id: vote(pair_id, "b"), {"x_request_id": "not mine"}, 200),
}


@pytest.mark.parametrize("case", CASES)
async def test_either_way_the_answer_and_the_line_are_the_same(site: Site, case: str) -> None:
    body_of, headers, status = CASES[case]
    pair_id, line = await site.a_pair(), await site.line()
    assert (await line.ask(*post(vote(pair_id, "b"))))[0] == 201
    request = post(body_of(pair_id), **headers)
    with structlog.testing.capture_logs() as around:
        short = await line.ask(*request)
        await eventually(lambda: any(entry["event"] == "request" for entry in around))
    assert site.long_way == []
    with structlog.testing.capture_logs() as through:
        long = await slowly(site, line, *request)
        await eventually(lambda: any(entry["event"] == "request" for entry in through))
    assert site.long_way == ["/v1/votes"]
    assert short[0] == long[0] == status
    assert _plain(short) == _plain(long)
    assert [_told(entry) for entry in around] == [_told(entry) for entry in through]
    if "https" in case:
        assert "; Secure" in short[1]["set-cookie"]


def _plain(answer: tuple[int, dict[str, str], bytes]) -> Any:
    """An answer without what differs from one to the next: its time, its id, a stranger's new name."""
    status, headers, body = answer
    own = headers["x-request-id"]
    headers = {name: re.sub(r"=[\w-]{32};", "=NEW;", value).replace(own, "ID") for name, value in headers.items()}
    return status, headers | {"date": ""}, body.replace(own.encode(), b"ID")


def _told(entry: Any) -> Any:
    return {name: value for name, value in entry.items() if name not in {"seconds", "request_id"}}


async def test_both_ways_are_counted_alike(site: Site, deps: ServeDeps) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    await line.ask(*post(vote(pair_id)))
    await slowly(site, line, *post(vote(pair_id)))
    registry = deps.metrics.registry
    asked = {"method": "POST", "route": "/v1/votes"}
    assert registry.get_sample_value("hustings_http_requests_total", asked | {"status": "201"}) == 1
    assert registry.get_sample_value("hustings_http_requests_total", asked | {"status": "200"}) == 1
    assert registry.get_sample_value("hustings_http_request_seconds_count", asked) == 2
    assert registry.get_sample_value("hustings_http_in_flight") == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post({"pair_id": "pair_no"}), 422),
        (post(b'{"pair_id"'), 400),
        (post(vote("pair_no"), content_type="text/plain"), 422),
        (post(vote("pair_no"), "/v1/votes?x=1"), 404),
        (post(vote("pair_no"), "/v1/%76otes"), 404),
        (post({"pair_id": "pair_no", "choice": "a", "comment": "x" * 1_500}), 413),
    ],
)
async def test_what_is_not_plainly_good_goes_the_long_way(
    make_deps: MakeDeps, request_: tuple[bytes, bytes], status: int
) -> None:
    async with serving(make_deps(max_body_bytes=1024)) as site:
        line = await site.line()
        assert ((await line.ask(*request_))[0], len(site.long_way)) == (status, 1)


async def test_who_asks_whether_to_send_a_body_is_told_so(site: Site) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    head, body = post(vote(pair_id), expect="100-continue")
    line.writer.write(head)
    assert await line._reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await line.ask(body))[0] == 201


async def test_a_body_in_chunks_is_a_body(site: Site) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    head, body = post(vote(pair_id), content_length="", transfer_encoding="chunked")
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (5, body[:5], len(body) - 5, body[5:])
    assert ((await line.ask(head, chunks))[0], site.long_way) == (201, [])


async def test_requests_in_one_packet_are_answered_in_their_order(site: Site) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    one, other = b"".join(post(vote(pair_id, "a"))), b"".join(post(vote(pair_id, "b")))
    line.writer.write(one + other + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" + one)
    assert [(await line.answer())[0] for _ in range(4)] == [201, 409, 200, 200]


async def test_what_could_be_answered_at_once_waits_for_what_was_asked_before_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair_id, line, held = await site.a_pair(), await site.line(), Held(monkeypatch)
    refused = b"".join(post(vote(pair_id), x_hustings_voter="a b"))
    line.writer.write(b"".join(post(vote(pair_id))) + refused)
    await eventually(held.there.is_set)
    held.go.set()
    assert [(await line.answer())[0] for _ in range(2)] == [201, 400]


@pytest.mark.parametrize(("version", "connection"), [("1.1", "close"), ("1.0", "")])
async def test_who_wants_to_go_is_let_go(site: Site, version: str, connection: str) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    status, headers, _ = await line.ask(*post(vote(pair_id), version=version, connection=connection))
    assert (status, headers["connection"], site.long_way) == (201, "close", [])
    assert await line.ended()


class Held:
    """Holds the ledger's votes up, as a slow disk does, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        real = Ledger.record_votes

        def held(*args: Any) -> Any:
            self.there.set()
            assert self.go.wait(10)
            return real(*args)

        monkeypatch.setattr(Ledger, "record_votes", held)


async def test_a_stop_waits_for_a_vote_that_is_being_recorded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pair_id, line, held = await site.a_pair(), await site.line(), Held(monkeypatch)
    line.writer.write(b"".join(post(vote(pair_id))))
    await eventually(held.there.is_set)
    site.server.should_exit = True
    await eventually(lambda: any(not each.cycle.keep_alive for each in site.server.server_state.connections))
    held.go.set()
    status, headers, _ = await line.answer()
    assert (status, headers["connection"]) == (201, "close")
    await site.running


async def test_who_leaves_before_the_answer_has_voted(
    site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, deps: ServeDeps
) -> None:
    pair_id, line, held = await site.a_pair(), await site.line(), Held(monkeypatch)
    with structlog.testing.capture_logs() as told:
        line.writer.write(b"".join(post(vote(pair_id))))
        await eventually(held.there.is_set)
        line.writer.close()
        await eventually(lambda: not site.server.server_state.connections)
        held.go.set()
        await eventually(lambda: any(entry["event"] == "request" for entry in told))
    assert [(entry["event"], entry["status"]) for entry in told] == [("request", 201)]
    assert ledger.counts().votes == 1
    assert not site.server.server_state.tasks


async def test_an_answer_that_is_given_up_ends_the_connection_and_is_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a stop whose time is up."""
    pair_id, line, held = await site.a_pair(), await site.line(), Held(monkeypatch)
    with structlog.testing.capture_logs() as told:
        line.writer.write(b"".join(post(vote(pair_id))))
        await eventually(held.there.is_set)
        (task,) = site.server.server_state.tasks
        task.cancel()
        assert await line.ended()
    assert [(entry["event"], entry["status"]) for entry in told] == [("request", 499)]
    held.go.set()


async def test_a_defect_is_answered_as_one(site: Site, monkeypatch: pytest.MonkeyPatch, deps: ServeDeps) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Ledger, "record_votes", broken)
    line = await site.line()
    with structlog.testing.capture_logs() as told:
        status, headers, body = await line.ask(*post(vote("pair_1")))
        await eventually(lambda: any(entry["event"] == "request" for entry in told))
    assert (status, headers["content-type"]) == (500, "application/problem+json")
    assert b"secret" not in body
    assert [(entry["event"], entry["log_level"]) for entry in told] == [
        ("unexpected error", "error"),
        ("request", "info"),
    ]
    assert (await line.ask(*post(vote("pair_1"))))[0] == 500


async def test_an_answer_that_cannot_be_sent_costs_the_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pair_id, line = await site.a_pair(), await site.line()
    monkeypatch.setattr("serve.exchange._EVERYWHERE", ((b"x-split", b"a\r\nset-cookie: b"),))
    with structlog.testing.capture_logs() as told:
        line.writer.write(b"".join(post(vote(pair_id))))
        assert await line.ended()
    assert "an answer could not be sent" in [entry["event"] for entry in told]


async def test_a_request_that_breaks_off_in_its_body_is_refused(site: Site) -> None:
    line = await site.line()
    head, _ = post(b"", content_length="", transfer_encoding="chunked")
    line.writer.write(head + b"no length\r\n")
    assert (await line.answer())[0] == 400
    assert await line.ended()
    assert site.long_way == []
