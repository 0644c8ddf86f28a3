"""Three and four answers at once, and rankings of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest

from feedback.contracts import CompletionRecord, Message, PairShown, SamplingRecord
from feedback.ledger import Ledger
from serve.app import create_app
from serve.config import ContendersConfig, GuardsConfig
from serve.contenders import outcomes
from serve.pairs import by_speaker
from serve.releases.guards import Guards
from serve.releases.sequential import Evidence
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import MakeDeps, client_of
from tests.serve.test_pairs import ASK, events_of

CAN, OLD = "policy-000002", "policy-000001"


def test_every_arrangement_in_which_both_speak_is_as_likely() -> None:
    drawn = outcomes(ContendersConfig(candidate_share=0.6), OLD, (CAN,), answers=3)
    assert sum(matchup.propensity for matchup in drawn) == pytest.approx(1.0)
    met = {m.adapters: m.propensity for m in drawn if m.rule == "candidate"}
    assert met == {
        speakers: pytest.approx(0.1)
        for speakers in [
            (CAN, OLD, OLD), (OLD, CAN, OLD), (OLD, OLD, CAN), (OLD, CAN, CAN), (CAN, OLD, CAN), (CAN, CAN, OLD),
        ]
    }  # fmt: skip
    assert [m.adapters for m in drawn if m.rule == "self-play"] == [(OLD, OLD, OLD)]
    four = outcomes(ContendersConfig(candidate_share=1.0), OLD, (CAN,), answers=4)
    assert len(four) == 14
    for place in range(4):  # and each of the two is as often in each place
        assert sum(m.propensity for m in four if m.adapters[place] == CAN) == pytest.approx(0.5)


@pytest.mark.parametrize("n", [3, 4])
async def test_one_adapter_answers_n_times_in_one_request(
    client: httpx.AsyncClient, engine: FakeEngine, ledger: Ledger, n: int
) -> None:
    body = (await client.post("/v1/pairs", json=ASK | {"n": n, "seed": 5})).json()
    assert [c["position"] for c in body["completions"]] == list("abcd"[:n])
    assert len({c["message"]["content"] for c in body["completions"]}) == n
    (request,) = engine.requests
    assert request.sampling.n == n
    pair = ledger.pair(body["pair_id"])
    assert pair is not None
    assert [c.sampling.seed for c in pair.completions] == [5, 6, 7, 8][:n]


async def test_of_two_adapters_each_answers_all_of_its_own_in_one_request(
    engine: FakeEngine, make_deps: MakeDeps, ledger: Ledger
) -> None:
    engine._usable.add(OLD)
    deps = make_deps(contenders={"anchor_share": 1.0})
    deps.office.switch(OLD)
    async with client_of(create_app(deps)) as client:
        for _ in range(12):
            engine.requests.clear()
            body = (await client.post("/v1/pairs", json=ASK | {"n": 3, "seed": 40})).json()
            pair = ledger.pair(body["pair_id"])
            assert pair is not None
            spoke = Counter(c.adapter for c in pair.completions)
            assert {request.adapter: request.sampling.n for request in engine.requests} == spoke
            assert pair.propensity == pytest.approx(1 / 6)
            # Each text is what the engine says for that adapter and seed: no side has got another's tokens.
            for completion in pair.completions:
                asked = next(r for r in engine.requests if r.adapter == completion.adapter)
                index = (completion.sampling.seed or 0) - (asked.sampling.seed or 0)
                assert completion.text == engine._answer(asked, index)
            assert len({c.sampling.seed for c in pair.completions}) == 3


async def test_all_sides_stream_at_once_and_the_first_event_says_how_many(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/pairs", json=ASK | {"n": 3, "stream": True})
    events = events_of(answer.text)
    assert events[0][0] == "pair"
    assert events[0][1]["positions"] == ["a", "b", "c"]
    assert [data["position"] for _, data in events[1:7]] == ["a", "b", "c"] * 2
    for completion in events[-1][1]["completions"]:
        told = "".join(d["content"] for _, d in events[1:-1] if d["position"] == completion["position"])
        assert told == completion["message"]["content"]


async def test_a_pair_says_nothing_of_positions(client: httpx.AsyncClient) -> None:
    events = events_of((await client.post("/v1/pairs", json=ASK | {"stream": True})).text)
    assert set(events[0][1]) == {"pair_id", "conversation_id"}


@pytest.mark.parametrize("n", [1, 5, "3"])
async def test_other_numbers_are_refused(client: httpx.AsyncClient, n: object) -> None:
    assert (await client.post("/v1/pairs", json=ASK | {"n": n})).status_code == 422


async def test_the_chat_page_gets_as_many_answers_as_are_configured(make_deps: MakeDeps) -> None:
    async with client_of(create_app(make_deps(chat={"answers": 3}))) as client:
        assert len((await client.post("/v1/turns", json=ASK)).json()["completions"]) == 3
        assert len((await client.post("/v1/pairs", json=ASK)).json()["completions"]) == 2


async def test_a_ranking_is_recorded_once_and_reveals_everybody(client: httpx.AsyncClient, ledger: Ledger) -> None:
    pair = (await client.post("/v1/pairs", json=ASK | {"n": 3})).json()
    vote = {"pair_id": pair["pair_id"], "ranking": [["b"], ["a", "c"]], "reasons": ["clear"]}
    first = await client.post("/v1/votes", json=vote)
    again = await client.post("/v1/votes", json=vote | {"ranking": [["b"], ["c", "a"]]})
    other = await client.post("/v1/votes", json=vote | {"ranking": [["a"], ["b"], ["c"]]})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    body = first.json()
    assert (body["choice"], body["ranking"]) == ("ranking", [["b"], ["a", "c"]])
    assert body["reveal"] == {"a": "base", "b": "base", "c": "base"}
    (kept,) = ledger.votes_between()
    assert kept.ranking == (("b",), ("a", "c"))


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (3, {"choice": "a"}),
        (3, {"ranking": [["a"], ["b"]]}),
        (3, {"ranking": [["a"], ["b"], ["c"], ["d"]]}),
        (3, {"ranking": [["a", "b", "c"]]}),
        (3, {"ranking": [["a"], ["b"], ["c"]], "choice": "tie"}),
        (3, {"ranking": [["a"], [], ["b", "c"]]}),
        (3, {"choice": "ranking"}),
        (3, {}),
        (2, {"ranking": [["a"], ["b"]]}),
    ],
)
async def test_a_vote_that_does_not_fit_is_refused(
    client: httpx.AsyncClient, ledger: Ledger, n: int, said: dict[str, Any]
) -> None:
    pair = (await client.post("/v1/pairs", json=ASK | {"n": n})).json()
    answer = await client.post("/v1/votes", json={"pair_id": pair["pair_id"]} | said)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert ledger.counts().votes == 0


@pytest.mark.parametrize("choice", ["tie", "both_bad"])
async def test_all_can_be_called_alike(client: httpx.AsyncClient, choice: str) -> None:
    pair = (await client.post("/v1/pairs", json=ASK | {"n": 4})).json()
    answer = await client.post("/v1/votes", json={"pair_id": pair["pair_id"], "choice": choice})
    assert (answer.status_code, answer.json()["choice"]) == (201, choice)


async def test_the_standings_count_a_ranking_as_one_vote(
    engine: FakeEngine, make_deps: MakeDeps, ledger: Ledger
) -> None:
    engine._usable.add(OLD)
    deps = make_deps(contenders={"anchor_share": 1.0}, ratings={"fresh_s": 0.0})
    deps.office.switch(OLD)
    async with client_of(create_app(deps)) as client:
        for number in range(10):
            pair = (
                await client.post("/v1/pairs", json=ASK | {"n": 3}, headers={"X-Hustings-Voter": f"{number}"})
            ).json()
            shown = ledger.pair(pair["pair_id"])
            assert shown is not None
            best = [c.position for c in shown.completions if c.adapter == OLD]
            rest = [c.position for c in shown.completions if c.adapter is None]
            await client.post(
                "/v1/votes",
                json={"pair_id": pair["pair_id"], "ranking": [best, rest]},
                headers={"X-Hustings-Voter": f"{number}"},
            )
        body = (await client.get("/v1/leaderboard")).json()
    assert (body["votes"], body["comparisons"], body["voters"]) == (10, 20, 10)
    first = body["contenders"][0]
    assert (first["contender"], first["wins"], first["losses"], first["win_rate"]) == (OLD, 20, 0, 1.0)


def test_a_pair_of_two_asks_as_it_always_did() -> None:
    drawn = {m.adapters for m in outcomes(ContendersConfig(anchor_share=1.0), OLD, ())}
    assert drawn == {(None, OLD), (OLD, None)}
    assert by_speaker(next(iter(outcomes(ContendersConfig(), OLD, ())))) == {OLD: ["a", "b"]}


def test_a_guard_takes_three_answers_for_one_observation() -> None:
    """Two of the office-holder's, one of the candidate's that is twice as long as one and as long as the other."""

    def side(position: str, adapter: str, words: int) -> CompletionRecord:
        return CompletionRecord(
            position=position,  # type: ignore[arg-type]
            text="word " * words,
            finish_reason="stop",
            adapter=adapter,
            sampling=SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=64),
            token_ids=tuple(range(words)),
        )

    pair = PairShown(
        pair_id="p",
        conversation_id="c",
        voter="v",
        messages=(Message(role="user", content="Well?"),),
        completions=(side("a", OLD, 8), side("b", CAN, 16), side("c", OLD, 16)),
        contenders="candidate",
        propensity=1 / 6,
        base_model="fake",
    )
    guards = Guards(GuardsConfig(), CAN, {})
    guards.add(pair)
    length = next(r for r in guards.readings(Evidence(0.5), Evidence(0.5)) if r.guard == "length")
    # Drift is (16 - 8) / 24 against the first and 0 against the other: a mean of 1/6, a ratio of (1 + 1/6) / (1 - 1/6).
    assert length.value == pytest.approx(1.4)
