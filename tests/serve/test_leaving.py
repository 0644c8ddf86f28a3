"""A client that leaves stops the engine at once, whatever it was waiting for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from feedback.ledger import Ledger
from serve.app import ServeDeps, create_app
from serve.streams import EventStream, Patience, StalledReader
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import TOKEN, MakeDeps

CHAT = {"messages": [{"role": "user", "content": "Hello?"}]}


class Visitor:
    """An ASGI client that hangs up when told to.

    Attributes:
        leave: set to hang up.
        reads: clear it, and it takes nothing more.
        sip_s: seconds that it takes for each piece.
    """

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (b"authorization", f"Bearer {TOKEN}".encode()),
            ],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self._body = json.dumps(body).encode()
        self._asked = False
        self.leave = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.sip_s = 0.0
        self.heard: list[dict[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        await asyncio.sleep(self.sip_s)
        self.heard.append(message)

    async def visit(self) -> None:
        await self._app(self._scope, self._receive, self._send)  # type: ignore[arg-type]


async def eventually(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


PATHS = [
    ("/v1/turns", CHAT | {"stream": True}),
    ("/v1/pairs", CHAT),
    ("/v1/pairs", CHAT | {"stream": True}),
    ("/v1/chat/completions", CHAT | {"model": "base"}),
    ("/v1/chat/completions", CHAT | {"model": "base", "stream": True}),
    ("/v1/rollouts", {"adapter": None, "prompts": [[1, 2]], "max_tokens": 4}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("after_first_token", [False, True])
async def test_leaving_aborts_the_engine(
    app: FastAPI,
    deps: ServeDeps,
    engine: FakeEngine,
    ledger: Ledger,
    path: str,
    body: dict[str, Any],
    after_first_token: bool,
) -> None:
    visitor = Visitor(app, path, body)
    if after_first_token:
        engine.token_delay_s = 0.01
    else:
        engine.gate.clear()
    visit = asyncio.create_task(visitor.visit())
    await eventually(lambda: bool(engine.started))
    if after_first_token:
        await asyncio.sleep(0.03)
    visitor.leave.set()
    await asyncio.wait_for(visit, 5)
    assert len(engine.aborted) == 1
    assert engine.finished == []
    assert engine.load().running == 0
    assert deps.people.inside == deps.rollouts.inside == 0
    assert ledger.counts().pairs == 0


async def test_leaving_a_pair_of_two_adapters_aborts_both(engine: FakeEngine, make_deps: MakeDeps) -> None:
    engine._usable.add("policy-000001")
    deps = make_deps(contenders={"anchor_share": 1.0})
    deps.office.switch("policy-000001")
    engine.token_delay_s = 0.01
    visitor = Visitor(create_app(deps), "/v1/pairs", CHAT | {"stream": True})
    visit = asyncio.create_task(visitor.visit())
    await eventually(lambda: len(visitor.heard) > 3)
    visitor.leave.set()
    await asyncio.wait_for(visit, 5)
    assert len(engine.aborted) == 2
    assert deps.office.in_use("policy-000001") == 0


STREAMS = [(path, body) for path, body in PATHS if body.get("stream")]


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_who_stops_reading_is_hung_up_on_and_holds_nothing(
    make_deps: MakeDeps, engine: FakeEngine, ledger: Ledger, path: str, body: dict[str, Any]
) -> None:
    deps = make_deps(stalled_client_s=0.05)
    engine.token_delay_s = 0.01
    visitor = Visitor(create_app(deps), path, body)
    visit = asyncio.create_task(visitor.visit())
    await eventually(lambda: len(visitor.heard) > 2)
    visitor.reads.clear()
    await asyncio.wait_for(visit, 5)
    assert visitor.heard[-1]["more_body"]
    assert deps.people.inside == 0
    assert engine.load().running == 0
    assert ledger.counts().pairs == 0
    assert deps.metrics.stalled_clients._value.get() == 1


async def test_who_sips_is_answered_no_longer_than_the_deadline(make_deps: MakeDeps) -> None:
    deps = make_deps(stalled_client_s=5.0, request_timeout_s=0.1)
    visitor = Visitor(create_app(deps), "/v1/pairs", CHAT | {"stream": True})
    visitor.sip_s = 0.03  # all of the answer would take 20 x 0.03 s
    await asyncio.wait_for(visitor.visit(), 5)
    assert b"took too long" in b"".join(message.get("body", b"") for message in visitor.heard)
    assert deps.people.inside == 0


async def test_a_stream_that_is_always_ready_is_cut_off_too_when_its_time_is_up() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"more"
        finally:
            closed.set()

    async def sip(_message: Any) -> None:
        await asyncio.sleep(0.01)

    stream = EventStream(endless(), patience=Patience(send_s=5.0, whole_s=0.1))
    with pytest.raises(StalledReader, match="wasn't taken"):
        await asyncio.wait_for(stream({"type": "http"}, asyncio.Event().wait, sip), 5)  # type: ignore[arg-type]
    assert closed.is_set()


async def test_on_the_network_too_a_client_that_reads_nothing_is_hung_up_on(make_deps: MakeDeps) -> None:
    engine = FakeEngine(answer=lambda request, index: " ".join(["x" * 5_000] * 60), max_model_len=10_000_000)
    await engine.start()
    deps = dataclasses.replace(make_deps(stalled_client_s=0.2, default_max_tokens=1_000_000), engine=engine)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # small, so that they are full soon
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server = uvicorn.Server(uvicorn.Config(create_app(deps), log_level="critical", ws="none", lifespan="off"))
        serving = asyncio.create_task(server.serve([listening]))
        await eventually(lambda: server.started)
        client.connect(listening.getsockname())
        body = json.dumps(CHAT | {"stream": True})
        head = "POST /v1/pairs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
        client.sendall(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await eventually(lambda: deps.people.inside == 1)
        await eventually(lambda: deps.people.inside == 0)
        await eventually(lambda: deps.metrics.stalled_clients._value.get() == 1)
        server.should_exit = server.force_exit = True
        await serving
