from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from feedback.ledger import Ledger
from serve.app import ServeDeps
from tests.serve.conftest import client_of

ASK = {"messages": [{"role": "user", "content": "Hello?"}]}


async def a_pair(client: httpx.AsyncClient) -> str:
    answer = await client.post("/v1/pairs", json=ASK)
    return str(answer.json()["pair_id"])


async def test_a_vote_is_recorded_once_and_reveals_who_spoke(client: httpx.AsyncClient, ledger: Ledger) -> None:
    pair_id = await a_pair(client)
    vote = {"pair_id": pair_id, "choice": "a", "reasons": ["clear"], "comment": "nice", "edited": "Better."}
    first = await client.post("/v1/votes", json=vote)
    again = await client.post("/v1/votes", json=vote)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["vote_id"] == again.json()["vote_id"]
    assert first.json()["reveal"] == {"a": "base", "b": "base"}
    assert first.json()["sampling"]["a"]["temperature"] == 1.0
    (kept,) = ledger.votes_between()
    assert (kept.choice, kept.reasons, kept.comment, kept.edited) == ("a", ("clear",), "nice", "Better.")


async def test_another_choice_for_the_same_pair_is_a_conflict(client: httpx.AsyncClient, ledger: Ledger) -> None:
    pair_id = await a_pair(client)
    await client.post("/v1/votes", json={"pair_id": pair_id, "choice": "a"})
    answer = await client.post("/v1/votes", json={"pair_id": pair_id, "choice": "b"})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert ledger.counts().votes == 1


async def test_an_unknown_pair_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/votes", json={"pair_id": "pair_no", "choice": "tie"})
    assert answer.status_code == 404


async def test_somebody_elses_pair_is_forbidden(client: httpx.AsyncClient, app: FastAPI, ledger: Ledger) -> None:
    pair_id = await a_pair(client)
    async with client_of(app) as other:
        answer = await other.post("/v1/votes", json={"pair_id": pair_id, "choice": "a"})
    assert answer.status_code == 403
    assert ledger.counts().votes == 0


@pytest.mark.parametrize(
    "change",
    [
        {"choice": "c"},
        {"choice": None},
        {"pair_id": ""},
        {"pair_id": 3},
        {"comment": "x" * 2001},
        {"edited": "x" * 20001},
        {"edited": ""},
        {"reasons": ["x"] * 11},
        {"reasons": ["x" * 65]},
        {"comment": "\ud800"},
        {"dwell_ms": -1},
        {"voter": "v_me"},
    ],
)
async def test_a_bad_vote_is_refused_and_not_recorded(
    client: httpx.AsyncClient, ledger: Ledger, change: dict[str, Any]
) -> None:
    pair_id = await a_pair(client)
    body = json.dumps({"pair_id": pair_id, "choice": "a"} | change)
    answer = await client.post("/v1/votes", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert ledger.counts().votes == 0


async def test_no_ledger_write_is_made_on_the_event_loops_thread(
    client: httpx.AsyncClient, deps: ServeDeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.get_ident()
    threads: set[int] = set()
    for name in ("record_pair", "record_votes"):
        real = getattr(Ledger, name)

        def noted(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            threads.add(threading.get_ident())
            return _real(*args, **kwargs)

        monkeypatch.setattr(Ledger, name, noted)
    await client.post("/v1/votes", json={"pair_id": await a_pair(client), "choice": "b"})
    assert threads
    assert here not in threads
