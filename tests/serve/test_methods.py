"""Methods: what can be got can be asked about by HEAD, and who asks wrongly hears what would be right."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from feedback.paths import DataPaths
from serve.app import ServeDeps
from tests.serve.conftest import TOKEN, client_of
from tests.serve.test_direct import serving


def every(app: FastAPI, method: str) -> list[str]:
    """Paths that take a method, with something in their places."""
    found = {route.path for route in app.routes if isinstance(route, APIRoute) and method in route.methods}
    places = {"{number}": "1", "{id}": "x", "{model}": "base", "{model:path}": "base", "{name}": "policy-000001"}
    for place, word in places.items():
        found = {path.replace(place, word) for path in found}
    assert not [path for path in found if "{" in path]
    return sorted(found)


async def test_head_is_answered_as_get_is_without_a_body(app: FastAPI) -> None:
    paths = [*every(app, "GET"), "/openapi.json", "/web/css/base.css", "/web/nothing"]
    assert len(paths) > 12
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as client:
        for path in paths:
            got, asked = await client.get(path), await client.head(path)
            assert (path, asked.status_code, asked.content) == (path, got.status_code, b"")
            assert asked.headers["content-type"] == got.headers["content-type"]


async def test_head_is_counted_by_its_own_name_and_route(client: httpx.AsyncClient, deps: ServeDeps) -> None:
    await client.head("/v1/models")
    labels = {"method": "HEAD", "route": "/v1/models", "status": "200"}
    assert deps.metrics.registry.get_sample_value("hustings_http_requests_total", labels) == 1


async def test_a_connection_goes_on_after_head(deps: ServeDeps) -> None:
    async with serving(deps) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        for path in (b"/v1/models", b"/", b"/metrics", b"/v1/nothing"):
            writer.write(b"HEAD " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: " in head.lower()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b'{"status":"alive"}')
        writer.close()


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/v1/votes", "GET", "POST"),
        ("/v1/votes", "HEAD", "POST"),
        ("/v1/votes", "OPTIONS", "POST"),
        ("/v1/models", "POST", "GET, HEAD"),
        ("/v1/chat/completions", "GET", "POST"),
        ("/", "POST", "GET, HEAD"),
        ("/web/css/base.css", "PUT", "GET, HEAD"),
        ("/v1/releases/policy-000001/promote", "PATCH", "POST"),
    ],
)
async def test_a_method_that_is_not_taken_hears_which_are(
    client: httpx.AsyncClient, path: str, method: str, allowed: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_who_forgets_the_type_hears_of_it(client: httpx.AsyncClient) -> None:
    """As curl does by itself."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post("/v1/votes", content=b'{"pair_id": "p", "choice": "a"}', headers=form)
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]
    answer = await client.post("/v1/chat/completions", content=b'{"model": "hustings"}', headers=form)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


async def test_a_folder_in_a_reports_place_is_no_report(client: httpx.AsyncClient, paths: DataPaths) -> None:
    (paths.train / "cycles" / "000001" / "report.html").mkdir(parents=True)
    answer = await client.get("/loop/cycles/1/report")
    assert (answer.status_code, answer.json()["detail"]) == (404, "Cycle 1's report can't be read: Is a directory.")
