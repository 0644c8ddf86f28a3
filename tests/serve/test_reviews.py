"""Prepared pairs: from the trainer's file to ordinary votes."""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from feedback.contracts import CompletionRecord, Message, ReviewItem, ReviewPool, SamplingRecord
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from feedback.simulator import SimulateConfig, simulate
from serve import reviews
from serve.app import create_app
from serve.reviews import ReviewShelf
from tests.serve.conftest import MakeDeps, client_of

FINGERPRINT = "f" * 64
"""Of the fixture's base."""


def item(number: int) -> ReviewItem:
    texts = (f"answer {number}", f"another {number}? yes?")
    sides = tuple(
        CompletionRecord(
            position=position,
            text=text,
            finish_reason="stop",
            adapter=None,
            sampling=SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=48),
            token_ids=(number, at),
            logprobs=(-1.0, -0.5),
        )
        for at, (position, text) in enumerate(zip("ab", texts, strict=True))
    )
    return ReviewItem(
        item_id=f"review_{number}",
        messages=(Message(role="user", content=f"Question {number}?"),),
        prompt_token_ids=(7, number),
        completions=sides,  # type: ignore[arg-type]
        propensity=0.5,
        information=0.1,
    )


def put(paths: DataPaths, items: int, *, fingerprint: str = FINGERPRINT, first: int = 0) -> Path:
    pool = ReviewPool(
        reward_model="reward-0123456789ab",
        base_model="fake",
        base_fingerprint=fingerprint,
        adapter=None,
        items=tuple(item(number) for number in range(first, first + items)),
    )
    paths.review_pool.parent.mkdir(parents=True, exist_ok=True)
    beside = paths.review_pool.with_suffix(".tmp")
    beside.write_text(pool.model_dump_json())
    beside.replace(paths.review_pool)
    return paths.review_pool


async def test_a_pool_that_cannot_be_read_is_none_and_is_told_of_once(
    client: httpx.AsyncClient, paths: DataPaths
) -> None:
    paths.review_pool.mkdir(parents=True)
    with capture_logs() as logs:
        for _ in range(3):
            assert (await client.get("/v1/reviews")).json()["waiting"] == 0
            assert (await client.post("/v1/reviews")).status_code == 404
    assert [line["event"] for line in logs if "review pool" in line["event"]] == ["review pool can't be read"]
    paths.review_pool.rmdir()
    put(paths, 2)
    assert (await client.get("/v1/reviews")).json()["waiting"] == 2


async def test_a_review_is_a_pair_like_any_other_with_its_propensity_and_source(
    client: httpx.AsyncClient, ledger: Ledger, paths: DataPaths
) -> None:
    put(paths, 4)
    assert (await client.get("/v1/reviews")).json() == {"waiting": 4}
    body = (await client.post("/v1/reviews")).json()
    assert body["messages"][0]["content"].startswith("Question ")
    assert set(body) == {"pair_id", "conversation_id", "completions", "messages"}
    pair = ledger.pair(body["pair_id"])
    assert pair is not None
    assert (pair.source, pair.contenders) == ("review", "review")
    assert pair.propensity == pytest.approx(0.5 * 1 / 4 * 1 / 2)
    assert [c.text for c in pair.completions] == [c["message"]["content"] for c in body["completions"]]
    assert all(c.token_ids for c in pair.completions)
    vote = await client.post("/v1/votes", json={"pair_id": body["pair_id"], "choice": "b"})
    assert (vote.status_code, vote.json()["reveal"]) == (201, {"a": "base", "b": "base"})
    (kept,) = ledger.votes_between()
    assert (kept.pair.source, kept.choice) == ("review", "b")
    assert (await client.get("/v1/reviews")).json() == {"waiting": 3}


async def test_nobody_sees_a_pair_twice_and_the_least_shown_come_first(
    app: FastAPI, ledger: Ledger, paths: DataPaths
) -> None:
    put(paths, 3)
    shown: list[list[str]] = []
    for name in ("ann", "ben"):
        async with client_of(app, **{"X-Hustings-Voter": name}) as client:
            asked = [(await client.post("/v1/reviews")).json()["messages"][0]["content"] for _ in range(3)]
            none = await client.post("/v1/reviews")
        assert none.status_code == 404
        assert none.headers["content-type"] == "application/problem+json"
        shown.append(asked)
    assert all(sorted(asked) == ["Question 0?", "Question 1?", "Question 2?"] for asked in shown)
    async with client_of(app, **{"X-Hustings-Voter": "cat"}) as client:
        first = (await client.post("/v1/reviews")).json()["messages"][0]["content"]
    async with client_of(app, **{"X-Hustings-Voter": "dan"}) as client:
        second = (await client.post("/v1/reviews")).json()["messages"][0]["content"]
    assert first != second  # cat's was shown once more than the others


async def test_sides_are_drawn(app: FastAPI, ledger: Ledger, paths: DataPaths) -> None:
    put(paths, 1)
    left: Counter[str] = Counter()
    for number in range(24):
        async with client_of(app, **{"X-Hustings-Voter": str(number)}) as client:
            left[(await client.post("/v1/reviews")).json()["completions"][0]["message"]["content"]] += 1
    assert set(left) == {"answer 0", "another 0? yes?"}
    assert min(left.values()) >= 4


@pytest.mark.parametrize("fault", ["none", "broken", "other base"])
async def test_without_a_pool_that_fits_there_is_nothing_to_judge(
    client: httpx.AsyncClient, paths: DataPaths, fault: str
) -> None:
    if fault == "broken":
        put(paths, 2).write_text("{")
    if fault == "other base":
        put(paths, 2, fingerprint="0" * 64)
    assert (await client.get("/v1/reviews")).json() == {"waiting": 0}
    assert (await client.post("/v1/reviews")).status_code == 404


async def test_a_new_pool_replaces_the_one_before(client: httpx.AsyncClient, paths: DataPaths) -> None:
    put(paths, 2)
    assert (await client.post("/v1/reviews")).status_code == 200
    os.utime(put(paths, 5, first=10), ns=(1, 1))
    assert (await client.get("/v1/reviews")).json() == {"waiting": 5}
    assert (await client.post("/v1/reviews")).json()["messages"][0]["content"] >= "Question 10?"


async def test_simulated_people_judge_what_is_prepared_and_then_go_on_chatting(
    app: FastAPI, ledger: Ledger, paths: DataPaths
) -> None:
    put(paths, 3)
    config = SimulateConfig(votes=8, voters=1, concurrency=1, reviews=1.0, utility="questions", progress=False)
    report = await simulate(config, client_of(app))
    assert (report.votes, report.reviewed, report.errors) == (8, 3, 0)
    assert Counter(vote.pair.source for vote in ledger.votes_between()) == {"review": 3, "chat": 5}
    assert len(ledger.duels(None, None, datetime(2026, 1, 1, tzinfo=UTC))) == 5  # what nobody asked is no duel


async def test_one_voter_takes_pairs_no_faster_than_they_may_vote(make_deps: MakeDeps, paths: DataPaths) -> None:
    put(paths, 5)
    deps = make_deps(ratings={"votes_per_minute": 1, "vote_burst": 2})
    app = create_app(deps)
    async with client_of(app, **{"X-Hustings-Voter": "eager"}) as client:
        answers = [await client.post("/v1/reviews") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 50 <= int(answers[2].headers["retry-after"]) <= 60
    assert deps.ledger.counts().pairs == 2
    async with client_of(app, **{"X-Hustings-Voter": "another"}) as client:
        assert (await client.post("/v1/reviews")).status_code == 200


@pytest.mark.parametrize("named", [True, False])
async def test_who_comes_under_ever_new_names_does_not_fill_the_ledger(
    make_deps: MakeDeps, paths: DataPaths, named: bool
) -> None:
    """Each of them is a new voter, with all of the pool before them."""
    put(paths, 3)
    deps = make_deps(ratings={"reviews_per_minute": 4})
    app = create_app(deps)
    statuses = []
    for number in range(7):
        async with client_of(app, **({"X-Hustings-Voter": f"name-{number}"} if named else {})) as client:
            answer = await client.post("/v1/reviews")
        statuses.append(answer.status_code)
    assert statuses == [200] * 4 + [429] * 3
    assert "serve.ratings.reviews_per_minute" in answer.json()["detail"]
    assert deps.ledger.counts().pairs == 4


def test_who_has_seen_what_is_remembered_of_so_many(paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "REMEMBERED", 2)
    shelf = ReviewShelf(put(paths, 2), lambda: FINGERPRINT, random.Random(1))
    for voter in ("v_a", "v_b", "v_a", "v_c"):
        assert shelf.take(voter) is not None
    assert [shelf.waiting(voter) for voter in ("v_a", "v_b", "v_c")] == [0, 2, 1]
