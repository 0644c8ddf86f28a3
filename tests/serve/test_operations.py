"""Loop data, standings, health, metrics, pages, headers, and what a defect looks like from outside."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from feedback.contracts import ReleaseChanged, ReleaseState
from feedback.ledger import Ledger, LedgerUnavailable
from feedback.paths import DataPaths
from serve.app import ServeDeps, create_app
from serve.engines.base import EngineUnavailable
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import client_of

ASK = {"messages": [{"role": "user", "content": "Hello?"}]}


async def vote(client: httpx.AsyncClient, choice: str) -> None:
    pair = (await client.post("/v1/pairs", json=ASK)).json()
    await client.post("/v1/votes", json={"pair_id": pair["pair_id"], "choice": choice})


async def test_the_loop_page_has_everything_in_one_object(client: httpx.AsyncClient, paths: DataPaths) -> None:
    await vote(client, "a")
    await vote(client, "tie")
    status = {"phase": "ppo", "cycles": [{"cycle": i} for i in range(30)], "dataset": {"new": 2}}
    (paths.train / "status.json").write_text(json.dumps(status))
    body = (await client.get("/v1/loop")).json()
    assert body["chat"]["pairs"] == 2
    assert {k: body["votes"][k] for k in ("total", "a", "b", "tie", "both_bad")} == {
        "total": 2,
        "a": 1,
        "b": 0,
        "tie": 1,
        "both_bad": 0,
    }
    assert body["votes"]["per_minute"] == 2.0
    assert body["outbox"]["pending"] == 4
    assert body["office"] == {"adapter": None, "since": None}
    assert body["training"] == {"phase": "ppo"}
    assert [cycle["cycle"] for cycle in body["cycles"]] == list(range(10, 30))
    assert body["releases"] == []


async def test_the_loop_page_is_told_of_the_newest_releases_and_of_those_that_stand_not_of_all(
    client: httpx.AsyncClient, deps: ServeDeps, ledger: Ledger
) -> None:
    """300 adapters were 147 KB and a third of a second, every two seconds."""
    names = [f"policy-{number:06d}" for number in range(1, 61)]
    for name in names:
        after = ReleaseState.IN_OFFICE if name == names[0] else ReleaseState.RETIRED
        ledger.record_release(ReleaseChanged(name=name, before=None, after=after, reason="why", actor="auto"))
    deps.office.switch(names[0])
    body = (await client.get("/v1/loop")).json()
    assert [row["name"] for row in body["releases"]] == [*reversed(names[40:]), names[0]]
    assert body["release_pages"] == {"total": 60, "change": 60, "next": names[40]}
    assert body["office"]["since"] is not None
    told, before = [], body["release_pages"]["next"]
    while before is not None:
        page = (await client.get("/v1/releases", params={"before": before, "limit": 15})).json()
        told += [row["name"] for row in page["releases"]]
        before = page["next"]
    assert told == [*reversed(names[:40])]
    assert [row["name"] for row in (await client.get("/v1/releases")).json()["releases"]] == [*reversed(names)]
    assert (await client.get("/v1/releases?before=../x")).status_code == 422


@pytest.mark.parametrize("content", [None, "{", "[]", "7"])
async def test_the_loop_page_does_without_a_trainer(
    client: httpx.AsyncClient, paths: DataPaths, content: str | None
) -> None:
    if content is not None:
        (paths.train / "status.json").write_text(content)
    body = (await client.get("/v1/loop")).json()
    assert body["training"] is None
    assert body["cycles"] == []


async def test_the_leaderboard_counts_votes_between_different_adapters(
    make_deps: Callable[..., ServeDeps], engine: FakeEngine
) -> None:
    deps = make_deps(ratings={"fresh_s": 0})
    async with client_of(create_app(deps)) as client:
        await vote(client, "a")
        empty = (await client.get("/v1/leaderboard")).json()
        assert (empty["contenders"], empty["left_share"], empty["votes"]) == ([], 1.0, 0)
        engine._usable.add("policy-000001")
        deps.office.set_canaries(("policy-000001",))
        for number in range(20):
            await vote(client, "b" if number % 4 == 3 else "a")
        body = (await client.get("/v1/leaderboard")).json()
        metrics = (await client.get("/metrics")).text
    assert {row["contender"] for row in body["contenders"]} == {"base", "policy-000001"}
    wins, losses = (sum(row[kind] for row in body["contenders"]) for kind in ("wins", "losses"))
    assert wins == losses == body["votes"] > 0
    for row in body["contenders"]:
        assert row["interval"][0] <= row["strength"] <= row["interval"][1]
    assert body["position_bias"] > 0
    assert body["left_share"] == 16 / 21
    assert body["left_share_interval"][0] > 0.5
    assert f'hustings_votes_left_share{{bound="estimate"}} {16 / 21}' in metrics
    assert 'hustings_voters{trust="whole"} 1.0' in metrics


async def test_metrics_carry_route_templates_and_no_ids(client: httpx.AsyncClient) -> None:
    await vote(client, "b")
    await client.get("/v1/models/policy-999999")
    await client.get("/secret/alice")
    text = (await client.get("/metrics")).text
    assert 'hustings_http_requests_total{method="GET",route="/v1/models/{model}",status="404"} 1.0' in text
    assert 'route="unmatched"' in text
    assert 'hustings_pairs_total{outcome="shown",rule="self-play"} 1.0' in text
    assert 'hustings_votes_total{choice="b",outcome="created"} 1.0' in text
    assert 'hustings_time_to_first_token_seconds_count{kind="pair"} 1.0' in text
    assert "hustings_engine_running 0.0" in text
    assert "alice" not in text
    assert "policy-999999" not in text


async def test_readiness_follows_engine_and_ledger(
    client: httpx.AsyncClient, engine: FakeEngine, ledger: Ledger
) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ready", "office": None}
    engine.die()
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "status", ["[", "5", '{"cycles": 5}', '{"cycles": {"a": 1}, "dataset": 5}', '{"cycles": [5, null]}', "\x00"]
)
async def test_a_trainers_status_that_is_none_takes_the_page_from_nobody(
    client: httpx.AsyncClient, paths: DataPaths, status: str
) -> None:
    (paths.train / "status.json").write_text(status)
    answer = await client.get("/v1/loop")
    assert (answer.status_code, answer.json()["cycles"], answer.json()["dataset"]) == (200, [], None)


@pytest.mark.parametrize("path", ["/", "/loop"])
async def test_the_pages_are_served_under_a_strict_policy(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/loop", "/healthz", "/readyz"])
async def test_a_load_balancer_may_ask_for_the_head_alone(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.head(path)
    assert answer.status_code == 200


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    for answer in (await client.get("/v1/nothing"), await client.get("/v1/pairs")):
        assert answer.status_code in {404, 405}
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_a_request_id_is_kept_if_it_is_harmless(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz", headers={"X-Request-ID": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await client.get("/healthz", headers={"X-Request-ID": "a b\tc"})).headers["x-request-id"]
    assert len(made) == 32


@pytest.mark.parametrize("stream", [False, True])
async def test_a_defect_is_answered_without_its_traceback(
    app: FastAPI, engine: FakeEngine, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(engine, "tokenize", broken)
    async with client_of(app) as client:
        own = await client.post("/v1/pairs", json=ASK | {"stream": stream})
        openai = await client.post("/v1/chat/completions", json=ASK | {"stream": stream, "model": "base"})
    assert own.status_code == openai.status_code == 500
    assert own.headers["content-type"] == "application/problem+json"
    assert openai.json()["error"]["type"] == "server_error"
    for answer in (own, openai):
        assert "secret detail" not in answer.text
        assert "Traceback" not in answer.text


async def test_a_malformed_voter_header_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/pairs", json=ASK, headers={"X-Hustings-Voter": "x" * 129})
    assert answer.status_code == 400


async def test_a_malformed_cookie_is_replaced(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/pairs", json=ASK, headers={"Cookie": 'hustings_voter="\\"; x'})
    assert answer.status_code == 200
    assert "hustings_voter=" in answer.headers["set-cookie"]


@pytest.mark.parametrize("neighbour", ['prefs={"dark":true}', "no value", "a[1]=x", 'quoted="a b"'])
async def test_another_programs_odd_cookie_on_the_same_host_takes_nobodys_identity(
    client: httpx.AsyncClient, neighbour: str
) -> None:
    answer = await client.post("/v1/pairs", json=ASK, headers={"Cookie": f"{neighbour}; hustings_voter=token-of-mine"})
    assert answer.status_code == 200
    assert answer.headers["set-cookie"].startswith("hustings_voter=token-of-mine; ")


@pytest.mark.parametrize("path", ["/", "/loop", "/favicon.ico", "/web/css/base.css", "/web/js/api.js"])
async def test_pages_and_their_parts_are_kept_by_browsers_and_asked_about_each_time(
    client: httpx.AsyncClient, path: str
) -> None:
    first = await client.get(path)
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"], again.content) == (304, "no-cache", b"")


async def test_metrics_are_there_while_the_ledger_is_not(
    client: httpx.AsyncClient, deps: ServeDeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Ledger) -> None:
        raise LedgerUnavailable("the ledger is away")

    monkeypatch.setattr(Ledger, "outbox_stats", gone)
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert "hustings_outbox_pending NaN" in answer.text
    assert "hustings_engine_running" in answer.text


@pytest.mark.parametrize(
    ("content_type", "status"), [("application/json", 404), ("text/plain", 422), ("", 422), (None, 422)]
)
async def test_another_sites_form_cannot_vote(client: httpx.AsyncClient, content_type: str | None, status: int) -> None:
    """A page elsewhere may post only what a form can, which JSON is not; and SameSite keeps the cookie from it."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = b'{"pair_id": "pair_no", "choice": "a"}'
    assert (await client.post("/v1/votes", content=body, headers=headers)).status_code == status


async def test_the_voters_cookie_is_kept_from_scripts_and_other_sites(client: httpx.AsyncClient) -> None:
    flags = (await client.post("/v1/pairs", json=ASK)).headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(flags)
    assert "Secure" not in flags  # over http, on this machine


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/pairs", ASK),
        ("POST", "/v1/pairs", ASK | {"stream": True}),
        ("POST", "/v1/turns", ASK),
        ("POST", "/v1/votes", {"pair_id": "pair_no", "choice": "a"}),
        ("POST", "/v1/thumbs", {"answer_id": "answer_no", "thumb": "up"}),
        ("GET", "/v1/reviews", None),
    ],
)
async def test_the_voters_cookie_lives_for_a_year_from_its_last_use(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    """It ran out a year after the first visit, and who came every day was a stranger to their conversations."""
    answer = await client.request(method, path, json=body, headers={"Cookie": "hustings_voter=token-of-mine"})
    token, *flags = answer.headers["set-cookie"].split("; ")
    assert token == "hustings_voter=token-of-mine"
    assert f"Max-Age={365 * 24 * 3600}" in flags
    assert len(answer.headers.get_list("set-cookie")) == 1


async def test_who_brings_a_header_gets_no_cookie_and_keeps_the_one_there_is(client: httpx.AsyncClient) -> None:
    both = {"Cookie": "hustings_voter=token-of-mine", "X-Hustings-Voter": "alice"}
    assert "set-cookie" not in (await client.post("/v1/pairs", json=ASK, headers=both)).headers


async def test_a_body_without_a_length_is_cut_at_the_limit(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    answer = await client.post("/v1/votes", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


async def test_nobody_is_told_where_the_engines_are(
    client: httpx.AsyncClient, engine: FakeEngine, deps: ServeDeps
) -> None:
    """Errors of vLLM servers began with their address, and with the key where that stands in it."""
    trouble = "http://user:key@10.1.2.3:8000/v1/models can't be reached: refused (https://10.1.2.3/)"
    engine.fail_after, engine.failure = 2, EngineUnavailable(trouble)
    chat: dict[str, Any] = ASK | {"model": "base"}
    told = []
    for path, body in (("/v1/pairs", ASK), ("/v1/turns", ASK), ("/v1/chat/completions", chat)):
        told += [(await client.post(path, json=body | {"stream": stream})).text for stream in (False, True)]
    deps.readiness.set_unready(trouble)
    told += [(await client.get("/readyz")).text, (await client.get("/v1/loop")).text]
    deps.readiness.set_ready()
    deps.readiness.set_behind(trouble)
    told.append((await client.get("/readyz")).text)
    assert all("a server can't be reached: refused (a server)" in answer for answer in told)
    assert not any(secret in answer for answer in told for secret in ("10.1.2.3", "user:key"))
