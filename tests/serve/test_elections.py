"""Candidates before the voters: canary, verdicts, guards, the alarm, pauses, and several servings on one ledger."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from feedback.contracts import (
    RELEASE_TOPIC,
    CompletionRecord,
    GateChanged,
    Message,
    PairShown,
    ReleaseChanged,
    ReleaseState,
    SamplingRecord,
    utc_now,
)
from feedback.event_log import OutgoingRecord
from feedback.ledger import Ledger, ReleaseConflict
from feedback.paths import DataPaths
from serve.app import ServeDeps, create_app
from serve.config import ContendersConfig, GuardsConfig, ReleasesConfig
from serve.contenders import outcomes
from serve.engines.base import AdapterLoadFailed, EngineOverloaded, EngineUnavailable
from serve.releases.follower import ReleaseFollower
from serve.releases.guards import Guards, Reading, refuses, repetition, told
from serve.releases.manager import ReleaseManager
from serve.releases.referee import Contest, Referee, Standing, Verdict
from serve.releases.sequential import Evidence
from tests.fakes.engine import FakeEngine
from tests.fakes.event_log import FakeEventLog
from tests.ledger.builders import shown_and_voted
from tests.serve.adapters import publish
from tests.serve.conftest import TOKEN, MakeDeps, client_of

ONE, TWO, THREE = "policy-000001", "policy-000002", "policy-000003"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
VOTES: dict[str, Any] = {"gate": "votes", "canary": {"ballot_votes": 1, "look_s": 60.0}}
"""Every person's first vote counts at once; nothing looks unless it is stirred."""
PLAIN = "It is a plain answer of a few words that says what was asked, no more and no less than that."
_numbers = itertools.count()


def shown(left: str | None, right: str | None, voter: str, texts: tuple[str, str] = (PLAIN, PLAIN)) -> PairShown:
    number = next(_numbers)
    sides = tuple(
        CompletionRecord(
            position=position,
            text=text,
            finish_reason="stop",
            adapter=adapter,
            sampling=SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=64),
            token_ids=tuple(range(len(text.split()))),
        )
        for position, adapter, text in zip("ab", (left, right), texts, strict=True)
    )
    return PairShown(
        pair_id=f"pair_{number}",
        conversation_id=f"talk_{number}",
        voter=voter,
        messages=(Message(role="user", content="Well?"),),
        completions=sides,
        contenders="candidate",
        propensity=0.25,
        base_model="fake",
    )


def elect(
    ledger: Ledger, winner: str | None, loser: str | None, votes: int, *, voter: str | None = None, **more: Any
) -> None:
    """So many people prefer `winner`, on the left and on the right by turns."""
    texts = more.get("texts", (PLAIN, PLAIN))

    def write(connection: Connection) -> None:
        for number in range(votes):
            swap = number % 2 == 1
            sides = (loser, winner) if swap else (winner, loser)
            pair = shown(*sides, voter or f"v_{next(_numbers)}", texts[::-1] if swap else texts)
            choice = more.get("choice") or ("b" if swap else "a")
            shown_and_voted(connection, pair, choice)

    ledger._database.write(write)


def states(ledger: Ledger) -> dict[str, str]:
    return {release.name: release.state.value for release in ledger.releases()}


def reason(ledger: Ledger, name: str) -> str:
    release = ledger.release(name)
    assert release is not None
    return release.reason


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
def deps(make_deps: MakeDeps) -> ServeDeps:
    return make_deps(releases=VOTES)


@pytest.fixture
async def manager(deps: ServeDeps) -> AsyncIterator[ReleaseManager]:
    made = ReleaseManager(deps)
    await made.start()
    await made.settled()
    yield made
    await made.close()


async def nominate(manager: ReleaseManager, paths: DataPaths, number: int, **changes: Any) -> None:
    """Publish an adapter and let it become the canary."""
    manager.hear(publish(paths.adapters, number, **changes))
    await asyncio.sleep(0)
    await manager.settled()
    await manager.keep_up()


async def test_a_candidate_is_verified_and_meets_the_office_holder_in_its_share_of_the_pairs(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    assert [(c.before, c.after) for c in ledger.release_history(ONE)] == [
        (None, ReleaseState.CANDIDATE),
        (ReleaseState.CANDIDATE, ReleaseState.VERIFIED),
        (ReleaseState.VERIFIED, ReleaseState.CANARY),
    ]
    assert deps.office.holder is None
    assert deps.office.canaries == (ONE,)
    drawn = {(m.adapters, m.rule): m.propensity for m in outcomes(deps.config.contenders, None, (ONE,))}
    assert drawn == {
        ((ONE, None), "candidate"): 0.25,
        ((None, ONE), "candidate"): 0.25,
        ((None, None), "self-play"): 0.5,
    }


async def test_voters_put_it_into_office_and_the_figures_are_kept(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    elect(ledger, ONE, None, 29)
    await manager.keep_up()
    assert deps.office.holder is None, "fewer votes than min_votes"
    elect(ledger, ONE, None, 1)
    await manager.keep_up()
    assert deps.office.holder == ONE
    assert deps.office.canaries == ()
    last = ledger.release_history(ONE)[-1]
    assert (last.after, last.actor) == (ReleaseState.IN_OFFICE, "auto")
    assert last.figures["votes"] == 30
    assert last.figures["lower"] > 0.5
    assert "100% [" in last.reason
    assert manager.election.canary is None


async def test_a_vote_over_http_is_looked_at_without_waiting(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    deps = make_deps(
        releases={"gate": "votes", "canary": {"ballot_votes": 1, "look_s": 60.0, "min_votes": 5}},
        contenders={"candidate_share": 1.0},
    )
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    await nominate(manager, paths, 1)
    async with client_of(app) as client:
        for number in range(60):
            if deps.office.holder == ONE:
                break
            voter = {"X-Hustings-Voter": f"somebody-{number}-of-them"}
            ask = {"messages": [{"role": "user", "content": "Well?"}], "max_tokens": 4}
            body = (await client.post("/v1/pairs", json=ask, headers=voter)).json()
            pair = ledger.pair(body["pair_id"])
            assert pair is not None
            if pair.contenders != "candidate":
                break  # elected meanwhile
            assert pair.propensity == 0.5
            side = next(c.position for c in pair.completions if c.adapter == ONE)
            answer = await client.post("/v1/votes", json={"pair_id": body["pair_id"], "choice": side}, headers=voter)
            assert answer.status_code == 201
        await eventually(lambda: deps.office.holder == ONE)
    await manager.close()


async def test_one_voter_alone_decides_nothing(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    elect(ledger, ONE, None, 60, voter="v_zealot")
    await manager.keep_up()
    assert deps.office.holder is None
    standing = manager.election.canary
    assert standing is not None
    assert (standing.votes, standing.voters, standing.ballots) == (60, 1, 1)


async def test_a_candidate_that_loses_is_rejected_and_unloaded(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    await nominate(manager, paths, 1)
    elect(ledger, None, ONE, 20)
    await manager.keep_up()
    assert states(ledger) == {ONE: "rejected"}
    assert "lost: 0%" in reason(ledger, ONE)
    await eventually(lambda: ONE not in engine.adapters())


@pytest.mark.parametrize(
    ("canary", "state", "why"),
    [
        ({"max_votes": 40}, "rejected", "not shown to be better"),
        ({"patience_h": 1e-9}, "retired", "undecided after"),
    ],
)
async def test_an_election_that_nobody_wins_ends(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, canary: dict[str, Any], state: str, why: str
) -> None:
    manager = ReleaseManager(make_deps(releases=VOTES | {"canary": VOTES["canary"] | canary}))
    await manager.start()
    await nominate(manager, paths, 1)
    elect(ledger, ONE, None, 20)
    elect(ledger, None, ONE, 20)
    await manager.keep_up()
    assert states(ledger) == {ONE: state}
    assert why in reason(ledger, ONE)
    await manager.close()


async def test_candidates_stand_one_at_a_time_and_the_newest_goes_next(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    await nominate(manager, paths, 2)
    await nominate(manager, paths, 3)
    assert states(ledger) == {ONE: "canary", TWO: "candidate", THREE: "candidate"}
    elect(ledger, ONE, None, 30)
    await manager.keep_up()
    await manager.keep_up()
    assert states(ledger) == {ONE: "in_office", TWO: "retired", THREE: "canary"}
    assert reason(ledger, TWO) == f"superseded: {THREE} is the newer candidate"


async def test_votes_against_a_former_office_holder_do_not_count(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    for number, name in ((1, ONE), (2, TWO)):
        await nominate(manager, paths, number)
        await manager.promote(name, "to begin with")
    await nominate(manager, paths, 3)
    elect(ledger, THREE, TWO, 20)
    await manager.rollback("worse")
    assert deps.office.holder == ONE
    elect(ledger, THREE, ONE, 10)
    await manager.keep_up()
    standing = manager.election.canary
    assert standing is not None
    assert (standing.contest.opponent, standing.votes) == (ONE, 10)


async def test_the_count_begins_anew_when_the_office_changes_hands_and_comes_back(
    manager: ReleaseManager, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "to begin with")
    await nominate(manager, paths, 3)
    elect(ledger, THREE, ONE, 20)
    await nominate(manager, paths, 2)
    await manager.promote(TWO, "a try")
    await manager.rollback("no good")
    elect(ledger, THREE, ONE, 10)
    await manager.keep_up()
    standing = manager.election.canary
    assert standing is not None
    assert (standing.contest.opponent, standing.votes) == (ONE, 10)


async def test_a_canary_goes_on_after_a_restart(
    manager: ReleaseManager, deps: ServeDeps, make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    await nominate(manager, paths, 1)
    elect(ledger, ONE, None, 10)
    await manager.close()
    engine._usable.clear()
    again = make_deps(releases=VOTES)
    second = ReleaseManager(again)
    await second.start()
    await second.keep_up()
    assert again.office.canaries == (ONE,)
    assert second.election.canary is not None
    assert second.election.canary.votes == 10
    await second.close()


async def test_a_canary_that_cannot_be_loaded_again_is_rejected(
    manager: ReleaseManager, make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    await nominate(manager, paths, 1)
    await manager.close()
    engine._usable.clear()
    (paths.adapters / ONE / "adapter_model.safetensors").write_bytes(b"damaged")
    second = ReleaseManager(make_deps(releases=VOTES))
    await second.start()
    await second.keep_up()
    assert states(ledger) == {ONE: "rejected"}
    await second.close()


# Guards


async def test_a_guard_vetoes_what_voters_like(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    elect(ledger, ONE, None, 60, texts=(PLAIN * 9, PLAIN))
    await manager.keep_up()
    assert states(ledger) == {ONE: "rejected"}
    assert "guard length: answers 8" in reason(ledger, ONE)
    assert deps.metrics.registry.get_sample_value("hustings_release_vetoes_total", {"guard": "length"}) == 1


async def test_an_adapter_too_far_from_the_base_never_meets_voters(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1, metrics={"policy_kl": 15.5})
    assert states(ledger) == {ONE: "rejected"}
    assert reason(ledger, ONE) == "guard kl: 15.5 nats an answer from the base (at most 15)"
    assert deps.office.canaries == ()


def damage_manifests(ledger: Ledger) -> None:
    ledger._database.write(lambda connection: connection.execute(text("UPDATE releases SET manifest = '{'")))


async def test_a_candidate_whose_figures_cannot_be_read_is_met_and_judged_by_nobody_but_people(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    """A guard without its figure would let it pass."""
    await nominate(manager, paths, 1)
    damage_manifests(ledger)
    elect(ledger, ONE, None, 400)
    with capture_logs() as logs:
        for _ in range(3):
            await manager.keep_up()
    assert (states(ledger), deps.office.canaries) == ({ONE: "canary"}, ())
    assert [line["adapter"] for line in logs if "can't be judged" in line["event"]] == [ONE]
    await manager.promote(ONE, "by hand")
    assert deps.office.holder == ONE


async def test_the_alarm_goes_on_beside_a_candidate_whose_figures_cannot_be_read(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "good")
    await nominate(manager, paths, 2)
    damage_manifests(ledger)
    elect(ledger, None, ONE, 400)
    await manager.keep_up()
    assert (states(ledger), deps.office.holder) == ({ONE: "rejected", TWO: "canary"}, None)


def quiet() -> tuple[Evidence, Evidence]:
    return Evidence(0.5), Evidence(0.05)


def vetoes(pairs: list[PairShown], **limits: float) -> set[str]:
    guards = Guards(GuardsConfig(**limits), ONE, {})
    for pair in pairs:
        guards.add(pair)
    return {reading.guard for reading in guards.readings(*quiet()) if reading.vetoes}


SORRY = "I'm sorry, but " + PLAIN
CHANT = "very good " * 9 + "indeed"


@pytest.mark.parametrize(
    ("mine", "other", "caught"),
    [
        (PLAIN, PLAIN, set()),
        (PLAIN * 9, PLAIN, {"length", "repetition"}),
        ("Yes.", PLAIN, {"length"}),
        (SORRY, PLAIN, {"refusals"}),
        (SORRY, SORRY, set()),
        (PLAIN, SORRY, set()),
        (CHANT, PLAIN, {"repetition"}),
    ],
)
def test_each_guard_sees_its_own_fault_on_either_side(mine: str, other: str, caught: set[str]) -> None:
    there = [shown(ONE, None, "v", (mine, other)) for _ in range(30)]
    back = [shown(None, ONE, "v", (other, mine)) for _ in range(30)]
    assert vetoes(there + back) == caught
    assert vetoes(there[:2]) == set(), "two odd answers are no veto"


def test_a_guard_lets_pass_what_keeps_within_its_limit() -> None:
    pairs = [shown(ONE, None, "v", (SORRY if n % 20 == 0 else PLAIN, PLAIN)) for n in range(400)]
    assert vetoes(pairs) == set()
    assert vetoes(pairs, max_refusal_rise=0.01) == {"refusals"}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m really sorry.", True),
        ("As an AI language model, I have no opinions.", True),
        ("I cannot do this.", True),
        ("It's inappropriate", False),
        ("It is not appropriate to say.", True),
        ("I candidly say yes.", False),
        ("Sorrel soup is made so:", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_how_an_answer_begins(text: str, refusal: bool) -> None:
    assert refuses(text) is refusal


def test_repetition_is_the_share_of_neighbours_said_before() -> None:
    # Twenty words "a b a b ...": 19 pairs of neighbours, of which two are new.
    assert repetition(shown(ONE, None, "v", ("a b " * 10, "")).completions[0]) == pytest.approx(17 / 19)
    assert repetition(shown(ONE, None, "v", ("a b " * 4, "")).completions[0]) == 0.0


@pytest.mark.parametrize("guard", ["length", "refusals", "repetition", "kl", "errors", "both_bad"])
def test_every_veto_has_its_words(guard: str) -> None:
    assert len(told(Reading(guard, 0.6, 0.5, True))) > 20


async def test_answers_that_fail_by_the_adapters_fault_make_a_veto(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    for _ in range(20):
        deps.office.note_answer(ONE, failed=True)
        deps.office.note_answer(None, failed=True)
    await manager.keep_up()
    assert "guard errors: 100% of its answers failed" in reason(ledger, ONE)


@pytest.mark.parametrize(("own", "state"), [(0, "rejected"), (30, "canary")])
async def test_both_bad_is_held_against_a_candidate_unless_the_office_holder_is_as_bad(
    manager: ReleaseManager, ledger: Ledger, paths: DataPaths, own: int, state: str
) -> None:
    await nominate(manager, paths, 1)
    elect(ledger, None, None, own, choice="both_bad")
    elect(ledger, ONE, None, 40, choice="both_bad")
    await manager.keep_up()
    assert states(ledger) == {ONE: state}


# The alarm


async def test_the_alarm_puts_the_predecessor_back(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    for number, name in ((1, ONE), (2, TWO)):
        await nominate(manager, paths, number)
        await manager.promote(name, "by hand")
    await manager.keep_up()
    assert deps.office.predecessors == (ONE,)
    drawn = {m.rule: 0.0 for m in outcomes(deps.config.contenders, TWO, (), (ONE,))}
    assert drawn == {"watch": 0.0, "self-play": 0.0}
    needed = unanimous(0.5, 0.01 / 2)  # it is watched against its predecessor and the base
    elect(ledger, ONE, TWO, needed - 1)
    await manager.keep_up()
    assert deps.office.holder == TWO
    elect(ledger, ONE, TWO, 1)
    await manager.keep_up()
    assert deps.office.holder == ONE
    assert states(ledger) == {ONE: "in_office", TWO: "rejected"}
    assert f"alarm: voters prefer {ONE}" in reason(ledger, TWO)
    assert deps.metrics.registry.get_sample_value("hustings_release_alarms_total") == 1


async def test_the_alarm_listens_to_the_base_as_an_anchor_in_every_mode(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    deps = make_deps(releases={"canary": VOTES["canary"]}, contenders={"anchor_share": 0.2})
    manager = ReleaseManager(deps)
    await manager.start()
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: deps.office.holder == ONE)
    assert deps.office.predecessors == ()
    elect(ledger, None, ONE, 15)
    await manager.keep_up()
    assert deps.office.holder is None
    await manager.close()


async def test_many_votes_of_an_office_holder_are_not_counted_at_each_look(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With anchors they grow for ever, and all of them are read each time."""
    monkeypatch.setattr("serve.releases.election.VOTES_A_SECOND", 1)  # 15 take 15 s, a look comes each minute
    deps = make_deps(releases={"canary": VOTES["canary"]}, contenders={"anchor_share": 0.2})
    counted: list[int] = []
    real = Referee.alarm

    def alarm(referee: Referee, contest: Contest, now: datetime, *, opponents: int) -> Standing:
        found = real(referee, contest, now, opponents=opponents)
        counted.append(found.votes)
        return found

    monkeypatch.setattr(Referee, "alarm", alarm)
    manager = ReleaseManager(deps)
    await manager.start()
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: deps.office.holder == ONE)
    elect(ledger, ONE, None, 15)
    await manager.keep_up()
    await manager.keep_up()
    assert counted[-2:] == [15, 15]
    monkeypatch.setattr("serve.releases.election.VOTES_A_SECOND", 0.1)
    await manager.keep_up()
    seen = len(counted)
    await manager.keep_up()
    assert len(counted) == seen
    await manager.close()


async def test_the_alarm_can_be_turned_off_and_an_old_office_holder_is_watched_no_longer(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    deps = make_deps(releases=VOTES | {"alarm": {"on": False}})
    manager = ReleaseManager(deps)
    await manager.start()
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "by hand")
    elect(ledger, None, ONE, 30)
    await manager.keep_up()
    assert deps.office.holder == ONE
    assert deps.office.predecessors == ()
    await manager.close()
    watching = make_deps(releases=VOTES | {"alarm": {"max_votes": 30}})
    second = ReleaseManager(watching)
    elect(ledger, ONE, None, 30)
    await second.start()
    await second.keep_up()
    assert watching.office.holder == ONE
    assert watching.office.predecessors == ()
    await second.close()


# Operators


async def test_a_pause_keeps_everything_as_it_is_and_is_in_the_audit_trail(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    deps = make_deps(releases=VOTES)
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    await nominate(manager, paths, 1)
    async with client_of(app) as client:
        assert (await client.post("/v1/releases/pause")).status_code == 401
        why = {"reason": "odd votes", "by": "ann"}
        answer = await client.post("/v1/releases/pause", headers=OPERATOR, json=why)
        assert answer.json() == {"paused": True}
        assert (await client.post("/v1/releases/pause", headers=OPERATOR)).status_code == 409
        elect(ledger, ONE, None, 40)
        await manager.keep_up()
        assert deps.office.holder is None
        assert deps.office.canaries == ()
        shown_state = (await client.get("/v1/releases")).json()
        assert shown_state["gate"]["mode"] == "votes"
        assert (shown_state["gate"]["paused"], shown_state["gate"]["actor"]) == (True, "ann")
        assert shown_state["canary"]["adapter"] == ONE
        assert (shown_state["canary"]["votes"], shown_state["canary"]["opponent"]) == (40, "base")
        loop = (await client.get("/v1/loop")).json()
        assert loop["canary"] == shown_state["canary"]
        assert loop["gate"]["paused"] is True
        answer = await client.post("/v1/releases/resume", headers=OPERATOR, json={"by": "ben"})
        assert answer.json() == {"paused": False}
        await eventually(lambda: deps.office.holder == ONE)
        assert (await client.post("/v1/releases/resume", headers=OPERATOR)).status_code == 409
        trail = (await client.get("/v1/releases/history")).json()["changes"]
        assert [row.get("paused", row.get("after")) for row in trail] == [
            "in_office",
            False,
            True,
            "canary",
            "verified",
            "candidate",
        ]
        assert (trail[2]["actor"], trail[2]["reason"]) == ("ann", "odd votes")
        of_one = (await client.get("/v1/releases/history", params={"name": ONE, "limit": 2})).json()["changes"]
        assert [row["after"] for row in of_one] == ["in_office", "canary"]
        pretender = await client.post("/v1/releases/pause", headers=OPERATOR, json={"by": "auto"})
        assert pretender.status_code == 422
    await manager.close()


async def test_nobody_is_nominated_during_a_pause(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await manager.pause(True, "a holiday", "ann")
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: states(ledger) == {ONE: "candidate"})
    await manager.settled()
    await manager.keep_up()
    assert (states(ledger), deps.office.canaries) == ({ONE: "candidate"}, ())
    await manager.pause(False, "back", "ann")
    await manager.keep_up()
    assert (states(ledger), deps.office.canaries) == ({ONE: "canary"}, (ONE,))


async def test_a_pause_holds_back_verified_adapters_in_the_probes_mode_too(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    deps = make_deps()
    manager = ReleaseManager(deps)
    await manager.start()
    await manager.pause(True, "a holiday", "ann")
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: states(ledger) == {ONE: "candidate"})
    await manager.settled()
    assert deps.office.holder is None
    await manager.pause(False, "back", "ann")
    await eventually(lambda: deps.office.holder == ONE)
    await manager.close()


async def test_an_operator_overrules_the_voters_both_ways(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "I like it", "ann")
    assert (deps.office.holder, deps.office.canaries) == (ONE, ())
    await nominate(manager, paths, 2)
    await manager.reject(TWO, "I don't", "ben")
    assert deps.office.canaries == ()
    assert states(ledger) == {ONE: "in_office", TWO: "rejected"}
    assert [change.actor for change in ledger.release_history()][-1] == "ben"


# Several servings on one ledger


async def test_a_canary_that_cannot_be_probed_just_now_goes_on_talking_to_people(
    manager: ReleaseManager,
    deps: ServeDeps,
    paths: DataPaths,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await nominate(manager, paths, 1)

    async def full(*_: object) -> tuple[float, ...]:
        raise EngineOverloaded("the engine is full")

    with monkeypatch.context() as trouble:
        trouble.setattr(engine, "score", full)
        with pytest.raises(EngineOverloaded):
            await manager.promote(ONE, "at once")
    assert (deps.office.canaries, engine.adapters()) == ((ONE,), {ONE})
    await manager.promote(ONE, "now")
    assert deps.office.holder == ONE


@pytest.fixture
async def other(make_deps: MakeDeps, ledger: Ledger) -> AsyncIterator[tuple[ReleaseManager, ServeDeps]]:
    """Another serving: an engine of its own, the same ledger and folder."""
    engine = FakeEngine()
    await engine.start()
    made = make_deps(releases=VOTES)
    object.__setattr__(made, "engine", engine)
    manager = ReleaseManager(made)
    await manager.start()
    await manager.settled()
    yield manager, made
    await manager.close()


async def test_servings_follow_what_one_of_them_decides(
    manager: ReleaseManager,
    deps: ServeDeps,
    other: tuple[ReleaseManager, ServeDeps],
    ledger: Ledger,
    paths: DataPaths,
) -> None:
    theirs, their_deps = other
    await nominate(manager, paths, 1)
    await theirs.keep_up()
    assert their_deps.office.canaries == (ONE,)
    assert ONE in their_deps.engine.adapters()
    await manager.promote(ONE, "good")
    assert their_deps.office.holder is None, "until it has loaded and probed it, it goes on"
    await theirs.keep_up()
    assert (their_deps.office.holder, their_deps.office.canaries) == (ONE, ())
    await theirs.rollback("bad")
    await manager.keep_up()
    assert deps.office.holder is None


async def test_the_topic_of_releases_makes_a_serving_look(
    other: tuple[ReleaseManager, ServeDeps], manager: ReleaseManager, paths: DataPaths, ledger: Ledger
) -> None:
    theirs, their_deps = other
    log = FakeEventLog()
    metrics = their_deps.metrics
    follower = ReleaseFollower(log, hear=theirs.hear, heed=theirs.stir, look=theirs.look, metrics=metrics, retry_s=0.01)
    follower.start()
    await asyncio.to_thread(log.wait_for, lambda: log.ensured > 0)
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "good")
    rows = ledger.pending(100)
    log.producer().send([OutgoingRecord(row.topic, row.key, row.value) for row in rows if row.topic == RELEASE_TOPIC])
    await eventually(lambda: their_deps.office.holder == ONE)
    pause = GateChanged(paused=True, reason="r", actor="ann")
    log.producer().send(
        [OutgoingRecord(RELEASE_TOPIC, "gate", pause.to_bytes()), OutgoingRecord(RELEASE_TOPIC, "x", b"{")]
    )
    await eventually(lambda: metrics.registry.get_sample_value("hustings_release_unreadable_total") == 1)
    await asyncio.to_thread(follower.stop)


async def test_a_serving_that_cannot_load_who_is_in_office_is_not_ready_until_it_can(
    manager: ReleaseManager, other: tuple[ReleaseManager, ServeDeps], paths: DataPaths
) -> None:
    theirs, their_deps = other
    engine = their_deps.engine
    assert isinstance(engine, FakeEngine)
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "good")
    engine.load_failure = AdapterLoadFailed("shapes don't fit")
    await theirs.keep_up()
    assert their_deps.office.holder is None
    assert "can't be loaded here: shapes don't fit" in (their_deps.readiness.reason or "")
    assert their_deps.metrics.registry.get_sample_value("hustings_release_behind") == 1
    await theirs.keep_up()
    assert (their_deps.office.holder, their_deps.readiness.reason) == (ONE, None)
    assert their_deps.metrics.registry.get_sample_value("hustings_release_behind") == 0


async def test_a_serving_that_stays_behind_longer_than_its_grace_is_not_ready(
    manager: ReleaseManager, other: tuple[ReleaseManager, ServeDeps], paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, their_deps = other
    engine = their_deps.engine
    await nominate(manager, paths, 1)
    await manager.promote(ONE, "good")

    async def away(*_: Any) -> None:
        raise EngineUnavailable("the engine is away")

    monkeypatch.setattr(engine, "load_adapter", away)
    with pytest.raises(EngineUnavailable):
        await theirs.keep_up()
    assert their_deps.readiness.reason is None
    assert theirs._succession._behind_since is not None
    theirs._succession._behind_since -= 61
    with pytest.raises(EngineUnavailable):
        await theirs.keep_up()
    assert "the engine is away" in (their_deps.readiness.reason or "")


async def test_of_two_servings_that_decide_at_once_one_does_and_the_other_follows(
    manager: ReleaseManager,
    deps: ServeDeps,
    other: tuple[ReleaseManager, ServeDeps],
    ledger: Ledger,
    paths: DataPaths,
) -> None:
    theirs, their_deps = other
    await nominate(manager, paths, 1)
    await theirs.keep_up()
    elect(ledger, ONE, None, 40)
    results = await asyncio.gather(manager.keep_up(), theirs.keep_up(), return_exceptions=True)
    assert all(result is None or isinstance(result, ReleaseConflict) for result in results)
    await manager.keep_up()
    await theirs.keep_up()
    assert deps.office.holder == their_deps.office.holder == ONE
    assert [c.after for c in ledger.release_history(ONE)].count(ReleaseState.IN_OFFICE) == 1


# The referee alone


def test_the_referee_reads_only_new_pairs_and_none_twice(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.releases.referee.BATCH", 7)
    since = utc_now() - timedelta(minutes=5)
    referee = Referee(ledger, ReleasesConfig(), lambda _: (0, 0))
    contest = Contest(ONE, None, since)
    elect(ledger, ONE, None, 40, texts=(SORRY, PLAIN))
    for expected in (40, 50):
        standing = referee.canary(contest, utc_now())
        assert referee._guards is not None
        assert referee._guards.guards._refusals.observations == expected
        elect(ledger, ONE, None, 10)
    assert standing.outcome.vetoing == "refusals"
    assert standing.outcome.verdict is Verdict.REJECT


def unanimous(null: float, alpha: float) -> int:
    """How many equal votes refute that rate, by the bets as the paper has them: eight shares in equal ratios."""
    shares = [0.05 * 18 ** (i / 7) for i in range(8)]
    capital, votes = [1.0] * 8, 0
    while sum(capital) / 8 < 1 / alpha:
        capital = [(1 - share) * each + share * each / null for share, each in zip(shares, capital, strict=True)]
        votes += 1
    return votes


@pytest.mark.parametrize(
    ("winner", "loser", "margin", "decided"),
    [(ONE, None, 0.0, Verdict.PROMOTE), (ONE, None, 0.1, Verdict.PROMOTE), (None, ONE, 0.1, Verdict.REJECT)],
)
def test_an_election_is_decided_by_the_vote_that_makes_the_evidence_whole_and_none_before(
    ledger: Ledger, winner: str | None, loser: str | None, margin: float, decided: Verdict
) -> None:
    canary = {"ballot_votes": 1, "min_votes": 0, "alpha": 0.02, "margin": margin}
    referee = Referee(ledger, ReleasesConfig.model_validate({"canary": canary}), lambda _: (0, 0))
    contest = Contest(ONE, None, utc_now() - timedelta(minutes=5))
    needed = unanimous(0.5 + margin if winner == ONE else 0.5, 0.02)
    elect(ledger, winner, loser, needed - 1)
    assert referee.canary(contest, utc_now()).outcome.verdict is Verdict.OPEN
    elect(ledger, winner, loser, 1)
    assert referee.canary(contest, utc_now()).outcome.verdict is decided


@pytest.mark.parametrize(("opponents", "alpha"), [(1, 0.01), (2, 0.005)])
def test_the_alarm_goes_off_at_the_vote_that_makes_the_evidence_whole_and_not_before(
    ledger: Ledger, opponents: int, alpha: float
) -> None:
    config = ReleasesConfig.model_validate({"canary": {"ballot_votes": 1}, "alarm": {"alpha": 0.01}})
    referee = Referee(ledger, config, lambda _: (0, 0))
    contest = Contest(ONE, None, utc_now() - timedelta(minutes=5))
    needed = unanimous(0.5, alpha)
    elect(ledger, None, ONE, needed - 1)
    assert referee.alarm(contest, utc_now(), opponents=opponents).outcome.verdict is Verdict.OPEN
    elect(ledger, None, ONE, 1)
    assert referee.alarm(contest, utc_now(), opponents=opponents).outcome.verdict is Verdict.REJECT


def test_no_promotion_before_the_guards_have_seen_enough_votes(ledger: Ledger) -> None:
    config = ReleasesConfig.model_validate({"canary": {"ballot_votes": 1, "min_votes": 25}})
    referee = Referee(ledger, config, lambda _: (0, 0))
    contest = Contest(ONE, None, utc_now() - timedelta(minutes=5))
    elect(ledger, ONE, None, 24)
    standing = referee.canary(contest, utc_now())
    assert (standing.evidence, standing.outcome.verdict) == (1.0, Verdict.OPEN)
    elect(ledger, ONE, None, 1)
    assert referee.canary(contest, utc_now()).outcome.verdict is Verdict.PROMOTE


def test_a_margin_asks_for_more(ledger: Ledger) -> None:
    elect(ledger, ONE, None, 50)
    elect(ledger, None, ONE, 20)
    contest = Contest(ONE, None, utc_now() - timedelta(minutes=5))

    def verdict(margin: float) -> Verdict:
        config = ReleasesConfig.model_validate({"canary": {"ballot_votes": 1, "margin": margin}})
        return Referee(ledger, config, lambda _: (0, 0)).canary(contest, utc_now()).outcome.verdict

    assert (verdict(0.0), verdict(0.2)) == (Verdict.PROMOTE, Verdict.OPEN)


def test_shares_that_do_not_fit_are_cut_in_their_order() -> None:
    config = ContendersConfig(candidate_share=0.6, anchor_share=0.3, watch_share=0.5)
    drawn = outcomes(config, TWO, (THREE,), (ONE,))
    shares: dict[str, float] = {}
    for matchup in drawn:
        shares[matchup.rule] = shares.get(matchup.rule, 0.0) + matchup.propensity
    assert shares == pytest.approx({"candidate": 0.6, "anchor": 0.3, "watch": 0.1})


def test_a_change_tells_what_it_rests_on() -> None:
    change = ReleaseChanged(
        name=ONE, before=None, after=ReleaseState.CANARY, reason="r", actor="auto", figures={"votes": 3.0}
    )
    assert ReleaseChanged.from_bytes(change.to_bytes()) == change
