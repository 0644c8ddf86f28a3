"""The quick way takes what is plainly good; everything else is FastAPI's, with its wording."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.quick_route import QuickRoute

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
    slow_ways.clear()
    app = FastAPI()
    app.state.deps = "the app's parts"
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
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


async def test_fastapis_way_takes_what_only_it_understands(client: httpx.AsyncClient) -> None:
    kind = "application/vnd.order+json"
    answer = await client.post("/order", content=b'{"amount": 3}', headers={"content-type": kind})
    assert (answer.status_code, slow_ways) == (201, ["/order"])


async def test_the_api_document_tells_of_the_body(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/order"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Order"}
