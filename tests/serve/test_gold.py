from __future__ import annotations

import random
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.voters import Ballots
from serve.app import create_app
from serve.contenders import Matchup
from serve.gold import BLOCK, GOLD, LEAST, Jumbler, plant
from tests.serve.conftest import MakeDeps, client_of
from tests.serve.test_votes import ASK

SELF = Matchup((None, None), "self-play", 0.5)
CONTEST = Matchup((None, "policy-000001"), "candidate", 0.25)


def test_only_an_adapter_that_meets_itself_is_planted_and_the_propensities_add_up() -> None:
    rng = random.Random(0)
    assert plant(rng, 1.0, CONTEST) == (CONTEST, None)
    assert plant(rng, 0.0, SELF) == (SELF, None)
    drawn = [plant(rng, 0.2, SELF) for _ in range(4000)]
    kinds = {(matchup.rule, better): matchup.propensity for matchup, better in drawn}
    assert kinds == pytest.approx({("self-play", None): 0.4, (GOLD, "a"): 0.05, (GOLD, "b"): 0.05})
    assert sum(kinds.values()) == pytest.approx(SELF.propensity)
    planted = sum(better is not None for _, better in drawn) / len(drawn)
    assert planted == pytest.approx(0.2, abs=0.02)


@given(
    words=st.lists(st.text("abcxyz.,", min_size=1, max_size=6), max_size=60),
    space=st.sampled_from([" ", "\n", "  "]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    seed=st.integers(0, 99),
)
def test_a_jumbled_answer_has_the_same_words_however_it_streams(
    words: list[str], space: str, cuts: list[int], seed: int
) -> None:
    words = [f"{word}{number}" for number, word in enumerate(words)]
    text = space.join(words)
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    jumbler = Jumbler(random.Random(seed))
    pieces = [jumbler.add(text[start:end]) for start, end in pairwise(edges)]
    shown = "".join([*pieces, jumbler.end()])
    assert sorted(shown.split()) == sorted(words)
    assert len(shown) == len(text)
    assert jumbler.jumbled == (len(words) >= LEAST)
    if not jumbler.jumbled:
        assert shown == text


def test_an_answer_of_one_word_over_and_over_cannot_be_jumbled() -> None:
    jumbler = Jumbler(random.Random(0))
    assert jumbler.add("no " * 30) + jumbler.end() == "no " * 30
    assert not jumbler.jumbled


def test_no_word_of_a_whole_block_stays_in_its_place() -> None:
    words = [f"w{number}" for number in range(3 * BLOCK)]
    jumbler = Jumbler(random.Random(1))
    shown = (jumbler.add(" ".join(words) + " ") + jumbler.end()).split()
    assert all(one != other for one, other in zip(words, shown, strict=True))


async def pair_and_vote(client: httpx.AsyncClient, choice: str = "a") -> str:
    shown = (await client.post("/v1/pairs", json=ASK | {"max_tokens": 120})).json()
    answer = await client.post("/v1/votes", json={"pair_id": shown["pair_id"], "choice": choice})
    assert answer.status_code == 201
    return str(shown["pair_id"])


async def test_a_planted_pair_is_marked_in_its_event_and_nowhere_else(make_deps: MakeDeps) -> None:
    deps = make_deps(contenders={"gold_share": 1.0}, ratings={"fresh_s": 0})
    async with client_of(create_app(deps)) as client:
        shown = (await client.post("/v1/pairs", json=ASK | {"max_tokens": 120})).json()
        assert "gold" not in str(shown)
        await client.post("/v1/votes", json={"pair_id": shown["pair_id"], "choice": "a"})
        board = (await client.get("/v1/leaderboard")).json()
        metrics = (await client.get("/metrics")).text
    kept = deps.ledger.pair(shown["pair_id"])
    assert kept is not None
    assert (kept.contenders, kept.propensity) == (GOLD, 0.5)
    jumbled = next(side for side in kept.completions if side.position != kept.gold)
    intact = next(side for side in kept.completions if side.position == kept.gold)
    assert (jumbled.token_ids, jumbled.logprobs) == ((), ())
    assert len(intact.token_ids) > 0
    assert {c["position"]: c["message"]["content"] for c in shown["completions"]} == {
        side.position: side.text for side in kept.completions
    }
    (vote,) = deps.ledger.votes_between()
    assert Ballots.of_votes([vote]).gold.tolist() == [0 if kept.gold == "a" else 1]
    assert board["planted"] == 1
    assert 'hustings_pairs_total{outcome="shown",rule="gold"} 1.0' in metrics


async def test_the_stream_of_a_planted_pair_is_what_is_recorded(make_deps: MakeDeps) -> None:
    deps = make_deps(contenders={"gold_share": 1.0})
    async with client_of(create_app(deps)) as client:
        answer = await client.post("/v1/pairs", json=ASK | {"stream": True, "max_tokens": 120})
    streamed = {"a": "", "b": ""}
    pair_id = ""
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields.get("event") == "delta":
            delta = httpx.Response(200, text=fields["data"]).json()
            streamed[delta["position"]] += delta["content"]
        elif fields.get("event") == "pair":
            pair_id = httpx.Response(200, text=fields["data"]).json()["pair_id"]
    kept = deps.ledger.pair(pair_id)
    assert kept is not None
    assert {side.position: side.text for side in kept.completions} == streamed


async def test_an_answer_too_short_to_jumble_is_no_planted_pair(make_deps: MakeDeps) -> None:
    deps = make_deps(contenders={"gold_share": 1.0})
    async with client_of(create_app(deps)) as client:
        shown = (await client.post("/v1/pairs", json=ASK | {"max_tokens": 4})).json()
    kept = deps.ledger.pair(shown["pair_id"])
    assert kept is not None
    assert (kept.gold, kept.contenders) == (None, "self-play")
    assert all(side.token_ids for side in kept.completions)
