from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from feedback.identity import pseudonym
from feedback.ledger import Ledger
from serve.app import ServeDeps, create_app
from serve.engines.base import AnswerBroken, EngineError, EngineOverloaded, EngineUnavailable
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import SECRET, MakeDeps, client_of

ASK = {"messages": [{"role": "user", "content": "Hello?"}]}


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        if block.startswith(":"):
            continue
        head, data = block.split("\n", 1)
        found.append((head.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_a_pair_has_two_different_answers_and_is_in_the_ledger(
    client: httpx.AsyncClient, ledger: Ledger, engine: FakeEngine
) -> None:
    answer = await client.post("/v1/pairs", json=ASK)
    assert answer.status_code == 200
    body = answer.json()
    assert [c["position"] for c in body["completions"]] == ["a", "b"]
    first, second = (c["message"]["content"] for c in body["completions"])
    assert first
    assert first != second
    pair = ledger.pair(body["pair_id"])
    assert pair is not None
    assert [c.text for c in pair.completions] == [first, second]
    assert pair.prompt_token_ids == tuple(b"<user>Hello?\n<assistant>")
    assert all(len(c.token_ids) == len(c.logprobs) > 0 for c in pair.completions)
    assert pair.contenders == "self-play"
    assert pair.propensity == 1.0


async def test_one_adapter_against_itself_is_one_request_with_two_answers_at_temperature_one(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post("/v1/pairs", json=ASK)
    (request,) = engine.requests
    assert request.sampling.n == 2
    assert request.sampling.temperature == 1.0


async def test_a_stream_tells_both_sides_as_they_come_and_ends_with_the_recorded_pair(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    async with client.stream("POST", "/v1/pairs", json=ASK | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of((await answer.aread()).decode())
    names = [name for name, _ in events]
    assert names[0] == "pair"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"delta"}
    for completion in events[-1][1]["completions"]:
        told = "".join(d["content"] for _, d in events[1:-1] if d["position"] == completion["position"])
        assert told == completion["message"]["content"]
    positions = [d["position"] for _, d in events[1:-1]]
    assert positions[:4] == ["a", "b", "a", "b"]
    assert ledger.pair(events[0][1]["pair_id"]) is not None


async def test_nothing_in_a_pair_tells_who_spoke(engine: FakeEngine, make_deps: MakeDeps) -> None:
    engine._usable.add("policy-000007")
    deps = make_deps(contenders={"anchor_share": 1.0})
    deps.office.switch("policy-000007")
    async with client_of(create_app(deps)) as client:
        whole = await client.post("/v1/pairs", json=ASK)
        streamed = await client.post("/v1/pairs", json=ASK | {"stream": True})
    assert {request.adapter for request in engine.requests} == {"policy-000007", None}
    for answer in (whole, streamed):
        shown = answer.text.lower()
        for tell in ("policy", "base", "adapter", "seed", "anchor", "propensity", "temperature"):
            assert tell not in shown


async def test_a_seed_makes_a_pair_repeatable_and_its_sides_still_differ(client: httpx.AsyncClient) -> None:
    one = (await client.post("/v1/pairs", json=ASK | {"seed": 5})).json()["completions"]
    two = (await client.post("/v1/pairs", json=ASK | {"seed": 5})).json()["completions"]
    assert one == two
    assert one[0]["message"] != one[1]["message"]


async def test_a_conversation_goes_on_under_its_id(client: httpx.AsyncClient, ledger: Ledger) -> None:
    first = (await client.post("/v1/pairs", json=ASK)).json()
    await client.post("/v1/pairs", json=ASK | {"conversation_id": first["conversation_id"]})
    assert len(ledger.conversation(first["conversation_id"])) == 2


async def test_the_voter_is_stored_as_a_pseudonym_of_the_cookie_that_was_set(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    answer = await client.post("/v1/pairs", json=ASK)
    header = answer.headers["set-cookie"]
    assert "HttpOnly" in header
    assert "SameSite=Lax" in header
    pair = ledger.pair(answer.json()["pair_id"])
    assert pair is not None
    assert pair.voter == pseudonym(SECRET, answer.cookies["hustings_voter"])
    again = await client.post("/v1/pairs", json=ASK)
    assert again.headers["set-cookie"] == header, "the same once more, for a year from now"
    assert ledger.pair(again.json()["pair_id"]).voter == pair.voter  # type: ignore[union-attr]


async def test_a_header_names_the_voter_too(app: FastAPI, ledger: Ledger) -> None:
    async with client_of(app, **{"X-Hustings-Voter": "alice"}) as client:
        answer = await client.post("/v1/pairs", json=ASK)
    assert "set-cookie" not in answer.headers
    assert ledger.pair(answer.json()["pair_id"]).voter == pseudonym(SECRET, "alice")  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_that_is_too_long_is_refused_with_the_remedy(
    client: httpx.AsyncClient, stream: bool
) -> None:
    ask = {"messages": [{"role": "user", "content": "x" * 3000}], "stream": stream}
    answer = await client.post("/v1/pairs", json=ask)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "shorten the conversation" in answer.json()["detail"]


async def test_a_failure_in_the_middle_is_an_error_event_and_nothing_is_recorded(
    client: httpx.AsyncClient, engine: FakeEngine, ledger: Ledger
) -> None:
    engine.fail_after = 3
    engine.failure = EngineUnavailable("the engine died")
    answer = await client.post("/v1/pairs", json=ASK | {"stream": True})
    name, problem = events_of(answer.text)[-1]
    assert name == "error"
    assert problem["status"] == 503
    assert ledger.counts().pairs == 0


@pytest.mark.parametrize(
    ("failure", "counted"),
    [
        (None, (1, 0)),
        (EngineError("its weights are odd"), (1, 1)),
        (EngineUnavailable("the engine died"), (0, 0)),
        (AnswerBroken("broken off"), (0, 0)),
        (EngineOverloaded("full"), (0, 0)),
    ],
)
async def test_an_adapter_is_charged_with_its_own_failures_and_with_no_others(
    engine: FakeEngine, make_deps: MakeDeps, failure: Exception | None, counted: tuple[int, int]
) -> None:
    engine._usable.add("policy-000007")
    deps = make_deps()
    deps.office.switch("policy-000007")
    if failure is not None:
        engine.fail_after, engine.failure = 3, failure
    async with client_of(create_app(deps)) as client:
        await client.post("/v1/pairs", json=ASK)
    assert deps.office.failures("policy-000007") == counted


async def test_before_the_engine_is_up_people_are_told_to_come_back(deps: ServeDeps) -> None:
    deps.readiness.set_unready("the model is still being loaded")
    async with client_of(create_app(deps)) as client:
        answer = await client.post("/v1/pairs", json=ASK)
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"messages": []}, "/messages"),
        ({"messages": "hi"}, "/messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "/messages/0/role"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "/messages/0/content"),
        ({"temperature": -1}, "/temperature"),
        ({"temperature": "1"}, "/temperature"),
        ({"top_p": 0}, "/top_p"),
        ({"max_tokens": 0}, "/max_tokens"),
        ({"seed": -1}, "/seed"),
        ({"seed": 1.5}, "/seed"),
        ({"conversation_id": "../etc"}, "/conversation_id"),
        ({"adapter": "policy-000001"}, "/adapter"),
    ],
)
async def test_a_bad_field_is_named(client: httpx.AsyncClient, change: dict[str, Any], where: str) -> None:
    answer = await client.post("/v1/pairs", json=ASK | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == where


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"null", b"\xff\xfe", b'"x"', b'{"messages": NaN}'])
async def test_a_body_that_is_no_request_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v1/pairs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_nan_and_infinity_are_refused(client: httpx.AsyncClient) -> None:
    for value in ("NaN", "Infinity"):
        body = json.dumps(ASK)[:-1] + f', "temperature": {value}}}'
        answer = await client.post("/v1/pairs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_huge_body_is_refused(client: httpx.AsyncClient, chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    content: Any = pieces() if chunked else b"x" * 2_000_000
    answer = await client.post("/v1/pairs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413


async def test_when_all_places_are_taken_people_are_told_to_come_back(make_deps: MakeDeps) -> None:
    deps = make_deps(max_in_flight=1)
    with deps.people.enter():
        async with client_of(create_app(deps)) as client:
            answer = await client.post("/v1/pairs", json=ASK | {"stream": True})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"


async def test_an_answer_that_takes_too_long_is_stopped(make_deps: MakeDeps, engine: FakeEngine) -> None:
    deps = make_deps(request_timeout_s=0.05)
    engine.gate.clear()
    async with client_of(create_app(deps)) as client:
        answer = await client.post("/v1/pairs", json=ASK)
    assert answer.status_code == 504
    assert len(engine.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_somebody_elses_conversation_is_forbidden_before_the_engine_works(
    client: httpx.AsyncClient, app: FastAPI, ledger: Ledger, engine: FakeEngine, stream: bool
) -> None:
    conversation = (await client.post("/v1/pairs", json=ASK)).json()["conversation_id"]
    asked = len(engine.requests)
    follow_up = ASK | {"conversation_id": conversation, "stream": stream}
    async with client_of(app) as other:
        answer = await other.post("/v1/pairs", json=follow_up)
    assert answer.status_code == 403
    assert answer.json()["title"] == "Somebody else's conversation"
    assert len(engine.requests) == asked
    assert (await client.post("/v1/pairs", json=follow_up)).status_code == 200
    assert ledger.counts().pairs == 2


@pytest.mark.parametrize("path", ["/v1/pairs", "/v1/turns", "/v1/chat/completions"])
async def test_a_conversation_without_end_is_one_fault(client: httpx.AsyncClient, path: str) -> None:
    """Every turn's faults were collected: a megabyte of `{}` took five seconds of the event loop and 0.9 GB."""
    asked = {"messages": [{}] * 10_001} | ({"model": "base"} if "chat" in path else {})
    answer = await client.post(path, json=asked)
    assert answer.status_code == (400 if "chat" in path else 422)
    assert "/messages: List should have at most 10000 items" in answer.text
    assert "/messages/0" not in answer.text
