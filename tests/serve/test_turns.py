"""Chat mode: a share of turns is paired, the rest is answered once and may be given a thumb."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from feedback.contracts import THUMB_TOPIC, ThumbGiven
from feedback.ledger import Ledger
from serve.app import ServeDeps, create_app
from serve.config import ChatConfig
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import MakeDeps, client_of

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello?"}]}
ALONE = {"mode": "chat", "paired_share": 0.0}


def single(make_deps: MakeDeps, **config: Any) -> ServeDeps:
    return make_deps(chat=ALONE, **config)


async def test_in_arena_mode_every_turn_is_a_pair(client: httpx.AsyncClient, ledger: Ledger) -> None:
    answer = (await client.post("/v1/turns", json=ASK)).json()
    assert [side["position"] for side in answer["completions"]] == ["a", "b"]
    assert ledger.counts().pairs == 1


def test_the_share_is_one_in_arena_mode_whatever_is_configured() -> None:
    assert ChatConfig(paired_share=0.0).share == 1.0
    assert ChatConfig(mode="chat", paired_share=0.25).share == 0.25


async def test_in_chat_mode_the_configured_share_is_paired(make_deps: MakeDeps, ledger: Ledger) -> None:
    async with client_of(create_app(make_deps(chat={"mode": "chat", "paired_share": 0.25}))) as client:
        kinds = ["pair_id" in (await client.post("/v1/turns", json=ASK)).json() for _ in range(40)]
    # Binomial(40, 1/4): mean 10, standard deviation 2.7; the draws are seeded.
    assert 3 <= sum(kinds) <= 17
    assert ledger.counts().pairs == sum(kinds)
    assert ledger.thumb_counts().answers == 40 - sum(kinds)


async def test_a_single_answer_is_recorded_with_its_adapter_and_propensity(
    make_deps: MakeDeps, engine: FakeEngine, ledger: Ledger
) -> None:
    engine._usable.add("policy-000003")
    deps = make_deps(chat={"mode": "chat", "paired_share": 0.0})
    deps.office.switch("policy-000003")
    async with client_of(create_app(deps)) as client:
        shown = (await client.post("/v1/turns", json=ASK)).json()
        assert set(shown) == {"answer_id", "conversation_id", "message", "finish_reason"}
        assert "policy" not in json.dumps(shown)
        thumb = await client.post("/v1/thumbs", json={"answer_id": shown["answer_id"], "thumb": "up"})
    assert thumb.status_code == 201
    assert thumb.json()["reveal"] == "policy-000003"
    (row,) = [row for row in ledger.pending(10) if row.topic == THUMB_TOPIC]
    event = ThumbGiven.from_bytes(row.value)
    assert event.thumb == "up"
    assert event.answer.propensity == 1.0
    assert event.answer.completion.text == shown["message"]["content"]
    assert len(event.answer.completion.logprobs) == len(event.answer.completion.token_ids) > 0
    assert deps.office.in_use("policy-000003") == 0


async def test_a_single_answer_streams(make_deps: MakeDeps) -> None:
    async with client_of(create_app(single(make_deps))) as client:
        text = (await client.post("/v1/turns", json=ASK | {"stream": True})).text
    events = [block.split("\n") for block in text.strip().split("\n\n")]
    told = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
    assert told[0][0] == "answer"
    assert {name for name, _ in told[1:-1]} == {"delta"}
    name, done = told[-1]
    assert name == "done"
    assert "".join(data["content"] for kind, data in told if kind == "delta") == done["message"]["content"]
    assert done["answer_id"] == told[0][1]["answer_id"]


async def test_the_first_thumb_stands_and_is_nobody_elses(make_deps: MakeDeps, ledger: Ledger) -> None:
    app = create_app(single(make_deps))
    async with client_of(app) as client, client_of(app) as other:
        answer_id = (await client.post("/v1/turns", json=ASK)).json()["answer_id"]
        up, down = ({"answer_id": answer_id, "thumb": thumb} for thumb in ("up", "down"))
        assert (await other.post("/v1/thumbs", json=up)).status_code == 403
        first = await client.post("/v1/thumbs", json=up | {"reasons": ["clear"], "comment": "nice"})
        again = await client.post("/v1/thumbs", json=up)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["thumb_id"] == again.json()["thumb_id"]
        assert (await client.post("/v1/thumbs", json=down)).status_code == 409
        assert (await client.post("/v1/thumbs", json=up | {"answer_id": "answer_no"})).status_code == 404
        loop = (await client.get("/v1/loop")).json()
    assert loop["thumbs"] == {"answers": 1, "up": 1, "down": 0}


async def test_places_and_deadlines_hold_for_single_answers_too(make_deps: MakeDeps, engine: FakeEngine) -> None:
    deps = single(make_deps, max_in_flight=1, request_timeout_s=0.05)
    async with client_of(create_app(deps)) as client:
        with deps.people.enter():
            full = await client.post("/v1/turns", json=ASK)
        engine.gate.clear()
        late = await client.post("/v1/turns", json=ASK)
    assert (full.status_code, full.headers["retry-after"]) == (429, "2")
    assert late.status_code == 504
    assert len(engine.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_somebody_elses_conversation_is_forbidden(make_deps: MakeDeps, stream: bool) -> None:
    app = create_app(single(make_deps))
    async with client_of(app) as client, client_of(app) as other:
        talk = (await client.post("/v1/turns", json=ASK)).json()["conversation_id"]
        answer = await other.post("/v1/turns", json=ASK | {"conversation_id": talk, "stream": stream})
    assert answer.status_code == 403
