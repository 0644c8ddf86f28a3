"""The quick way takes what is plainly good; everything else is FastAPI's, with its wording."""

from __future__ import annotations

import json
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve import faults
from serve.quick_route import MOST_FAULTS, QuickRoute

router = APIRouter(route_class=QuickRoute)
slow_ways: list[str] = []


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    amount: int


async def fastapis_way(request: Request) -> Any:
    slow_ways.append(request.url.path)
    return request.app.state.deps


@router.post("/order", status_code=201)
async def order(body: Order, request: Request, deps: Annotated[Any, Depends(fastapis_way)]) -> Response:
    return JSONResponse({"amount": body.amount, "deps": deps, "path": request.url.path}, 201)


@pytest.fixture
def client() -> httpx.AsyncClient:
    return _client(_app())


@pytest.fixture
def app_client() -> httpx.AsyncClient:
    """With serving's own answers to failures."""
    app = _app()
    faults.install(app)
    return _client(app)


def _app() -> FastAPI:
    slow_ways.clear()
    app = FastAPI()
    app.state.deps = "the app's parts"
    app.include_router(router)
    return app


def _client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/x.order+json"])
async def test_a_good_body_goes_straight_to_the_endpoint(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/order", content=b'{"amount": 3}', headers={"content-type": kind})
    assert (answer.status_code, answer.json()) == (201, {"amount": 3, "deps": "the app's parts", "path": "/order"})
    assert slow_ways == []


@pytest.mark.parametrize(
    ("content", "kind", "fault"),
    [
        (b'{"amount": "3"}', "application/json", "int_type"),
        (b'{"amount": 3, "more": 1}', "application/json", "extra_forbidden"),
        (b'{"amount"', "application/json", "json_invalid"),
        (b"", "application/json", "missing"),
        (b'{"amount": 3}', "text/plain", "model_attributes_type"),
    ],
)
async def test_any_other_is_refused_in_fastapis_words(
    client: httpx.AsyncClient, content: bytes, kind: str, fault: str
) -> None:
    answer = await client.post("/order", content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, fault)


@pytest.mark.parametrize("kind", ["application/json", "application/x.order+json"])
async def test_faults_without_number_are_counted_and_not_told_one_by_one(
    app_client: httpx.AsyncClient, kind: str
) -> None:
    """FastAPI worded each: a megabyte of them took the event loop for seconds, and a gigabyte of memory."""
    content = json.dumps({f"k{number}": 0 for number in range(MOST_FAULTS)}).encode()
    answer = await app_client.post("/order", content=content, headers={"content-type": kind})
    assert (answer.status_code, slow_ways) == (422, [])
    assert "wrong in 101 places" in answer.json()["detail"]


async def test_a_handful_of_faults_is_told(app_client: httpx.AsyncClient) -> None:
    content = json.dumps({f"k{number}": 0 for number in range(MOST_FAULTS - 1)}).encode()
    answer = await app_client.post("/order", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 20)


async def test_the_api_document_tells_of_the_body(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/order"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Order"}
