"""A client that leaves stops the engine at once, whatever it was waiting for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI

from feedback.ledger import Ledger
from serve.app import ServeDeps, create_app
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import TOKEN, MakeDeps

CHAT = {"messages": [{"role": "user", "content": "Hello?"}]}


class Visitor:
    """An ASGI client that hangs up when told to."""

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
        self.heard: list[dict[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.heard.append(message)

    async def visit(self) -> None:
        await self._app(self._scope, self._receive, self._send)  # type: ignore[arg-type]


async def eventually(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


PATHS = [
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
