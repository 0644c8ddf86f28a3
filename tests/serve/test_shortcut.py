"""The shortcut answers as the long way does, in fewer steps, and leaves the rest to it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from feedback.ledger import UnknownPair
from serve import faults
from serve.app import create_app
from serve.deps import Deps
from serve.quick_route import QuickRoute
from serve.shortcut import Shortcut
from tests.serve.conftest import MakeDeps

router = APIRouter(route_class=QuickRoute)


class Order(BaseModel):
    amount: int


@router.post("/order", status_code=201)
async def order(body: Order, request: Request, deps: Deps) -> Response:
    if body.amount == 404:
        raise UnknownPair("pair_404")
    if body.amount == 500:
        raise ZeroDivisionError
    return JSONResponse({"amount": body.amount, "deps": str(deps), "route": request.scope["route"].path}, 201)


class Way:
    """Sits inside the shortcut and notes who comes by."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._seen.append(scope["path"])
        await self._app(scope, receive, send)


@pytest.fixture
def long_way() -> list[str]:
    return []


@pytest.fixture
def client(long_way: list[str]) -> httpx.AsyncClient:
    app = FastAPI()
    app.state.deps = "the app's parts"
    app.include_router(router)
    faults.install(app)
    app.add_middleware(Way, seen=long_way)
    app.add_middleware(Shortcut, routes=[route for route in app.routes if isinstance(route, QuickRoute)])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_a_good_body_goes_straight_to_the_endpoint(client: httpx.AsyncClient, long_way: list[str]) -> None:
    answer = await client.post("/order", json={"amount": 3})
    assert (answer.status_code, long_way) == (201, [])
    assert answer.json() == {"amount": 3, "deps": "the app's parts", "route": "/order"}


@pytest.mark.parametrize(("amount", "status"), [(404, 404), (500, 500)])
async def test_failures_are_answered_as_on_the_long_way(
    client: httpx.AsyncClient, long_way: list[str], amount: int, status: int
) -> None:
    answer = await client.post("/order", json={"amount": amount})
    assert (answer.status_code, long_way) == (status, [])
    if status == 404:
        assert answer.json()["title"] == "Unknown pair"


async def test_what_is_not_plainly_good_goes_the_long_way_with_its_body(
    client: httpx.AsyncClient, long_way: list[str]
) -> None:
    bad = await client.post("/order", json={"amount": "three"})
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/amount")
    other = await client.post("/order", content=b'{"amount": 3}', headers={"content-type": "application/x+json"})
    assert (other.status_code, other.json()["amount"]) == (201, 3)
    assert (await client.get("/order")).status_code == 405
    assert (await client.get("/elsewhere")).status_code == 404
    assert long_way == ["/order", "/order", "/elsewhere"], "of what FastAPI reads as JSON, only what is bad"


def test_what_people_ask_most_has_the_shortcut(make_deps: MakeDeps) -> None:
    (shortcut,) = [each for each in create_app(make_deps()).user_middleware if each.cls is Shortcut]
    assert {route.path for route in shortcut.kwargs["routes"]} == {
        "/v1/chat/completions",
        "/v1/pairs",
        "/v1/votes",
        "/v1/turns",
        "/v1/thumbs",
    }


async def test_behind_a_path_prefix_the_router_decides(long_way: list[str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        long_way.append(scope["path"])

    async def never(*_: Any) -> Any:
        raise AssertionError("nobody reads")

    shortcut = Shortcut(app, routes=[route for route in router.routes if isinstance(route, QuickRoute)])
    scope = {"type": "http", "method": "POST", "path": "/order", "root_path": "/prefix", "headers": []}
    await shortcut(scope, never, never)
    assert long_way == ["/order"]
