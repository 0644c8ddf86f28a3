from __future__ import annotations

import pytest

from serve.app import create_app
from serve.errors import Overloaded
from serve.rate_limit import RateLimit
from tests.serve.conftest import MakeDeps, client_of
from tests.serve.test_votes import ASK, a_pair


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_after_the_burst_the_rate_decides_and_says_when_to_come_back() -> None:
    clock = Clock()
    limit = RateLimit(per_minute=30, burst=3, clock=clock)
    for _ in range(3):
        limit.take("v")
    with pytest.raises(Overloaded) as refused:
        limit.take("v")
    assert refused.value.retry_after_s == pytest.approx(2.0)
    clock.now = 1.9
    with pytest.raises(Overloaded):
        limit.take("v")
    clock.now = 2.0
    limit.take("v")
    limit.take("w")
    clock.now = 1e6
    for _ in range(3):
        limit.take("v")
    with pytest.raises(Overloaded):
        limit.take("v")


@pytest.mark.parametrize(("per_minute", "said"), [(600, "in 1 s"), (50, "in 2 s"), (60, "in 1 s")])
def test_nobody_is_told_to_come_back_before_it_is_of_any_use(per_minute: float, said: str) -> None:
    limit = RateLimit(per_minute, burst=1, clock=lambda: 0.0)
    limit.take("v")
    with pytest.raises(Overloaded, match=said):
        limit.take("v")


def test_no_rate_no_limit() -> None:
    limit = RateLimit(per_minute=0, burst=1)
    for _ in range(1000):
        limit.take("v")


async def test_who_votes_too_fast_is_told_to_wait_and_nothing_is_recorded(make_deps: MakeDeps) -> None:
    deps = make_deps(ratings={"votes_per_minute": 1, "vote_burst": 2})
    async with client_of(create_app(deps), **{"X-Hustings-Voter": "eager"}) as client:
        pairs = [await a_pair(client) for _ in range(3)]
        answers = [await client.post("/v1/votes", json={"pair_id": pair, "choice": "a"}) for pair in pairs]
        metrics = (await client.get("/metrics")).text
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert 50 <= int(answers[2].headers["retry-after"]) <= 60
    assert answers[2].headers["content-type"] == "application/problem+json"
    assert deps.ledger.counts().votes == 2
    assert 'hustings_votes_refused_total{reason="too_fast"} 1.0' in metrics
    async with client_of(create_app(deps), **{"X-Hustings-Voter": "another"}) as client:
        own = (await client.post("/v1/pairs", json=ASK)).json()["pair_id"]
        assert (await client.post("/v1/votes", json={"pair_id": own, "choice": "b"})).status_code == 201
