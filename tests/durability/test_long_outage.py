"""The event log is away for hours: people chat and vote as ever, operators see it; then all of it goes in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import anyio.to_thread
import httpx
import pytest

from feedback.config import FeedbackConfig
from feedback.contracts import PAIR_TOPIC, TOPICS, VOTE_TOPIC, PairShown, VoteCast
from feedback.ledger import Ledger, outbox
from feedback.paths import DataPaths
from feedback.relay import Relay, RelayMetrics
from serve.app import create_app
from serve.config import ServeConfig
from tests.fakes.engine import FakeEngine
from tests.fakes.event_log import FakeEventLog
from tests.serve.conftest import client_of, ready_deps

TALKS, TURNS = 4, 5


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.relay.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("feedback.relay.LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def log() -> FakeEventLog:
    return FakeEventLog()


@pytest.fixture
async def client(tmp_path: Path, log: FakeEventLog) -> AsyncIterator[httpx.AsyncClient]:
    """Serving with a relay, and an event log that has been away since before it started."""
    paths = DataPaths(tmp_path)
    paths.create()
    ledger, engine = Ledger.open(paths.ledger_url), FakeEngine()
    await engine.start()
    deps = ready_deps(engine, ledger, paths, ServeConfig())
    log.down = True
    relay = Relay(
        ledger, log, FeedbackConfig(relay_idle_s=0.01, relay_batch=7), metrics=RelayMetrics(deps.metrics.registry)
    )
    relay.start()
    async with client_of(create_app(deps), **{"X-Hustings-Voter": "somebody"}) as made:
        yield made
    await anyio.to_thread.run_sync(relay.stop)
    ledger.close()


async def talk_and_vote(client: httpx.AsyncClient) -> dict[str, list[str]]:
    """Ids of the votes by conversation, in the order in which they were acknowledged; the conversations take turns."""
    votes: dict[str, list[str]] = defaultdict(list)
    names: list[str | None] = [None] * TALKS
    for _ in range(TURNS):
        for number, name in enumerate(names):
            ask = {"messages": [{"role": "user", "content": "and then?"}], "max_tokens": 8}
            pair = await client.post("/v1/pairs", json=ask | ({"conversation_id": name} if name else {}))
            assert pair.status_code == 200
            names[number] = pair.json()["conversation_id"]
            vote = await client.post("/v1/votes", json={"pair_id": pair.json()["pair_id"], "choice": "b"})
            assert vote.status_code == 201
            votes[pair.json()["conversation_id"]].append(vote.json()["vote_id"])
    return dict(votes)


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("hus"))}


async def test_votes_go_on_for_hours_without_kafka_and_then_go_in_order(
    client: httpx.AsyncClient, log: FakeEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = await talk_and_vote(client)
    events = 2 * TALKS * TURNS
    with monkeypatch.context() as patch:
        real = outbox.utc_now
        patch.setattr(outbox, "utc_now", lambda: real() + timedelta(hours=6))
        away = await metrics(client)
    assert away["hustings_outbox_pending"] == events
    assert away["hustings_outbox_connected"] == 0
    assert 6 * 3600 <= away["hustings_outbox_oldest_pending_seconds"] < 6 * 3600 + 60

    log.down = False
    assert await anyio.to_thread.run_sync(log.wait_for, lambda: len(log.records(VOTE_TOPIC)) == TALKS * TURNS)
    told: dict[str, list[str]] = defaultdict(list)
    for record in log.records(VOTE_TOPIC):
        vote = VoteCast.from_bytes(record.value or b"")
        told[vote.pair.conversation_id].append(vote.vote_id)
    assert told == votes
    pairs = [PairShown.from_bytes(record.value or b"") for record in log.records(PAIR_TOPIC)]
    assert len(pairs) == len({pair.pair_id for pair in pairs}) == TALKS * TURNS
    log.ensure_topics(TOPICS)
    back = await metrics(client)
    while back["hustings_outbox_pending"]:  # the last batch is on the topic a moment before it is marked as sent
        back = await metrics(client)
    assert back["hustings_outbox_oldest_pending_seconds"] == 0
    assert back["hustings_outbox_connected"] == 1
