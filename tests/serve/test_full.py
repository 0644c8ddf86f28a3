"""When there is no room, whoever comes is told to come back, and those who are inside notice nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import create_app
from serve.config import ServeConfig
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import TOKEN, MakeDeps, client_of, ready_deps

MESSAGES = [{"role": "user", "content": "Hello?"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/pairs": {"messages": MESSAGES},
    "/v1/turns": {"messages": MESSAGES},
    "/v1/chat/completions": {"messages": MESSAGES, "model": "base"},
}


def told(answer: httpx.Response) -> tuple[int, str | None, str]:
    """Status, Retry-After, and the message in whichever of the two formats."""
    body = answer.json()
    return answer.status_code, answer.headers.get("retry-after"), body.get("detail") or body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
async def test_an_engine_whose_queue_is_full_is_a_429_that_says_when_to_come_back(
    route: str, stream: bool, ledger: Ledger, paths: DataPaths
) -> None:
    engine = FakeEngine(max_running=1, max_queue=1)
    await engine.start()
    engine.gate.clear()
    body = ROUTES[route] | {"stream": stream}
    async with client_of(create_app(ready_deps(engine, ledger, paths, ServeConfig()))) as client:
        inside = [asyncio.create_task(client.post(route, json=body)) for _ in range(2)]
        while engine.load().waiting < 1:
            await asyncio.sleep(0)
        refused = await client.post(route, json=body)
        assert told(refused) == (429, "1", "1 requests wait already")
        engine.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*inside)] == [200, 200]
        assert (await client.post(route, json=body)).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
async def test_an_engine_that_is_gone_is_a_503_that_says_when_to_come_back(
    route: str, make_deps: MakeDeps, engine: FakeEngine
) -> None:
    engine.die("the engine died")
    async with client_of(create_app(make_deps())) as client:
        assert told(await client.post(route, json=ROUTES[route])) == (503, "5", "the engine died")
        assert told(await client.post(route, json=ROUTES[route] | {"stream": True})) == (503, "5", "the engine died")


@pytest.mark.parametrize("route", ROUTES)
async def test_before_serving_is_ready_everybody_gets_a_503_that_says_when_to_come_back(
    route: str, make_deps: MakeDeps
) -> None:
    deps = make_deps()
    deps.readiness.set_unready("the model is still being loaded")
    async with client_of(create_app(deps)) as client:
        status, retry, message = told(await client.post(route, json=ROUTES[route]))
    assert (status, retry) == (503, "5")
    assert "the model is still being loaded" in message


async def test_trainers_beyond_their_places_are_told_to_come_back_and_people_are_not(make_deps: MakeDeps) -> None:
    deps = make_deps(max_rollouts_in_flight=1)
    body = {"adapter": None, "prompts": [[1, 2]], "max_tokens": 2}
    async with client_of(create_app(deps)) as client:
        with deps.rollouts.enter():
            refused = await client.post("/v1/rollouts", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
            person = await client.post("/v1/pairs", json=ROUTES["/v1/pairs"])
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert person.status_code == 200
