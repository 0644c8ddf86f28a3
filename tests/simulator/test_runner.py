"""Simulated people against a small serving app in memory."""

import asyncio
import itertools

import httpx
import pytest
from fastapi import FastAPI, Header, Response

from feedback.simulator import SimulateConfig, SimulateError, simulate
from feedback.simulator import client as simulator_client

SURE = {"noise": 0.0, "side_bias": 0.0, "both_bad": 0.0, "utility": "questions", "progress": False}


class FakeServing:
    """Answers pairs with what `answers` gives, keeps votes, and fails where it is told to."""

    def __init__(self, answers=(("?", "."),)):
        self.answers = itertools.cycle(answers)
        self.pairs = {}
        self.votes = {}
        self.asked = []
        self.faults = []
        self.app = FastAPI()
        self.app.post("/v1/pairs")(self.pair)
        self.app.post("/v1/votes")(self.vote)

    def pair(self, body: dict, response: Response, x_hustings_voter: str = Header()):
        if self.faults and self.faults[0][0] == "pair":
            return self._fail(response)
        self.asked.append(body)
        pair_id = f"pair_{len(self.pairs)}"
        self.pairs[pair_id] = x_hustings_voter
        sides = zip("abcd", next(self.answers), strict=False)
        return {
            "pair_id": pair_id,
            "completions": [
                {"position": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                for at, text in sides
            ],
        }

    def vote(self, body: dict, response: Response, x_hustings_voter: str = Header()):
        assert self.pairs[body["pair_id"]] == x_hustings_voter
        new = body["pair_id"] not in self.votes
        self.votes[body["pair_id"]] = body.get("choice") or body["ranking"]
        if self.faults and self.faults[0][0] == "vote":
            return self._fail(response)
        response.status_code = 201 if new else 200
        return {"vote_id": f"vote_{body['pair_id']}"}

    def _fail(self, response):
        _, status, headers = self.faults.pop(0)
        response.status_code = status
        response.headers.update(headers)
        return {"title": "no", "detail": "told to fail"}


async def ran(serving, **settings):
    transport = httpx.ASGITransport(app=serving.app)
    http = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    return await simulate(SimulateConfig(**{**SURE, **settings}), http)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(simulator_client, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(simulator_client, "LONGEST_PAUSE_S", 0.002)


async def test_as_many_votes_are_cast_as_were_asked_for():
    serving = FakeServing([("?", "."), (".", "?"), (".", ".")])
    report = await ran(serving, votes=30, concurrency=7, voters=5)
    assert (report.votes, report.decisive, report.ties, report.both_bad) == (30, 20, 10, 0)
    assert len(serving.votes) == len(serving.pairs) == 30
    assert 1 < len(set(serving.pairs.values())) <= 5
    assert (report.agreement, report.position_bias) == (1.0, 0.0)
    assert (report.errors, report.retries, report.repeated, report.reached) == (0, 0, 0, True)
    assert report.votes_per_minute == pytest.approx(30 / report.seconds * 60)


async def test_decisive_counts_only_votes_that_name_a_winner_and_casts_no_more():
    serving = FakeServing([("?", "."), (".", "."), (".", ".")])
    report = await ran(serving, votes=10, decisive=True, concurrency=4)
    assert report.decisive == 10
    assert report.reached
    assert sum(choice in "ab" for choice in serving.votes.values()) == 10


async def test_a_taste_that_never_decides_ends_in_a_report_that_says_so():
    report = await ran(FakeServing([(".", ".")]), votes=2, decisive=True, pairs_per_vote=3)
    assert (report.decisive, report.ties, report.reached, report.agreement) == (0, 6, False, None)


async def test_a_vote_whose_answer_was_lost_is_sent_again_and_counted_once():
    serving = FakeServing()
    serving.faults = [("vote", 503, {}), ("vote", 500, {})]
    report = await ran(serving, votes=5, concurrency=1)
    assert (report.votes, report.retries, report.repeated) == (5, 2, 1)
    assert len(serving.votes) == 5


async def test_a_busy_server_is_asked_again():
    serving = FakeServing()
    serving.faults = [("pair", 503, {"Retry-After": "0"}), ("pair", 429, {"Retry-After": "soon"})]
    report = await ran(serving, votes=3, concurrency=1)
    assert (report.votes, report.retries, report.errors) == (3, 2, 0)


async def test_single_refusals_are_errors_and_the_run_goes_on():
    serving = FakeServing()
    serving.faults = [("pair", 422, {}), ("vote", 404, {})]
    report = await ran(serving, votes=4, concurrency=1)
    assert (report.votes, report.errors, report.reached) == (4, 2, True)


async def test_a_server_that_refuses_everything_ends_the_run_with_its_reason():
    serving = FakeServing()
    serving.faults = [("pair", 422, {})] * 50
    with pytest.raises(SimulateError, match="422: told to fail"):
        await ran(serving, votes=40, concurrency=3)


async def test_a_server_that_stays_away_ends_the_run_with_its_address():
    serving = FakeServing()
    serving.faults = [("pair", 503, {})] * 500
    with pytest.raises(SimulateError, match=r"http://localhost.*no answer"):
        await ran(serving, votes=1, patience_s=0.01)


async def test_a_proxy_of_the_environment_is_not_asked_for_the_way_to_serving(monkeypatch: pytest.MonkeyPatch):
    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 422 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    async with await asyncio.start_server(hear, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(SimulateError, match="422"):
            await simulate(SimulateConfig(votes=1, url=url, concurrency=1, patience_s=0, progress=False))


async def test_a_connection_that_breaks_is_tried_again():
    serving = FakeServing()
    inner, broken = httpx.ASGITransport(app=serving.app), iter([True, False, True])

    class Breaking(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            if next(broken, False):
                raise httpx.ConnectError("connection refused")
            return await inner.handle_async_request(request)

    http = httpx.AsyncClient(transport=Breaking(), base_url="http://localhost")
    report = await simulate(SimulateConfig(**SURE, votes=2, concurrency=1), http)
    assert (report.votes, report.retries) == (2, 2)


async def test_the_same_seed_asks_the_same_and_sends_the_settings():
    first, second = FakeServing(), FakeServing()
    for serving in (first, second):
        await ran(serving, votes=6, concurrency=1, seed=9, max_tokens=32, temperature=0.5)
    assert first.asked == second.asked
    assert first.asked[0]["max_tokens"] == 32
    assert first.asked[0]["temperature"] == 0.5
    assert [message["role"] for message in first.asked[0]["messages"]] == ["user"]


async def test_noise_and_bias_show_in_the_report():
    report = await ran(FakeServing(), votes=200, noise=0.5, side_bias=0.3, concurrency=20)
    # P(a) = 0.3 + 0.7 * 0.5 = 0.65, and a is always the honest choice.
    assert report.agreement == pytest.approx(0.65, abs=0.12)
    assert report.position_bias == pytest.approx(0.15, abs=0.12)


async def test_a_progress_bar_and_a_log_can_be_shown(capsys):
    await ran(FakeServing(), votes=2, progress=True)
    assert "votes a minute" in capsys.readouterr().err
    await ran(FakeServing(), votes=2, progress=None)


async def test_three_answers_are_ranked_by_the_hidden_taste():
    serving = FakeServing(answers=[("?", "??", "."), ("?", "?.", "? ?"), ("a", "b", "c")])
    report = await ran(serving, votes=3, n=3, concurrency=1)
    assert [body["n"] for body in serving.asked] == [3, 3, 3]
    assert list(serving.votes.values()) == [[["a", "b"], ["c"]], [["c"], ["a", "b"]], "tie"]
    assert (report.votes, report.decisive, report.ties, report.agreement) == (3, 2, 1, 1.0)
