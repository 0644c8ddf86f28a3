"""Releases: states, history, office."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from feedback.contracts import RELEASE_TOPIC, AdapterManifest, GateChanged, ProbeRecord, ReleaseChanged, ReleaseState
from feedback.ledger import Ledger, Release, ReleaseConflict, kept_manifests
from tests.ledger.builders import shown

WHEN = datetime(2026, 11, 21, 10, 30, 0, 123456, tzinfo=UTC)


def change(name, after, before=None, **more):
    return ReleaseChanged(name=name, before=before, after=after, reason="why", actor="auto", **more)


def manifest(name="policy-000001"):
    probe = ProbeRecord(prompt_token_ids=(1,), response_token_ids=(2,), policy_logprobs=(-0.5,), base_logprobs=(-0.75,))
    return AdapterManifest(
        name=name,
        parent=None,
        base_model="tiny",
        base_fingerprint="f",
        lora_rank=16,
        reward_model="rm",
        snapshot="s",
        files={"adapter_model.safetensors": "0" * 64},
        probes=(probe,),
        config={"ppo": {"lr": 1e-3}},
        metrics={"reward": 0.5},
        created_at=WHEN,
    )


def test_nothing_in_office_means_the_base(ledger):
    assert ledger.office() is None
    assert ledger.releases() == []
    assert ledger.release("policy-000001") is None


def test_a_release_has_the_state_of_its_last_change_and_keeps_its_manifest(ledger):
    ledger.record_release(change("policy-000001", ReleaseState.CANDIDATE), manifest())
    ledger.record_release(
        change("policy-000001", ReleaseState.VERIFIED, ReleaseState.CANDIDATE, changed_at=WHEN), manifest=None
    )
    assert ledger.release("policy-000001") == Release(
        "policy-000001", ReleaseState.VERIFIED, manifest(), "why", "auto", WHEN
    )


def test_history_is_in_order_and_by_name(ledger):
    ledger.record_release(change("policy-000001", ReleaseState.CANDIDATE))
    ledger.record_release(change("policy-000002", ReleaseState.CANDIDATE))
    ledger.record_release(change("policy-000001", ReleaseState.REJECTED, ReleaseState.CANDIDATE))
    assert [c.after for c in ledger.release_history("policy-000001")] == ["candidate", "rejected"]
    assert [c.name for c in ledger.release_history()] == ["policy-000001", "policy-000002", "policy-000001"]
    assert [r.name for r in ledger.releases()] == ["policy-000001", "policy-000002"]


def test_each_change_goes_to_the_event_log_keyed_by_name(ledger):
    changes = [change("policy-000001", ReleaseState.CANDIDATE), change("policy-000001", ReleaseState.IN_OFFICE)]
    for each in changes:
        ledger.record_release(each)
    rows = ledger.pending(10)
    assert [(row.topic, row.key) for row in rows] == [(RELEASE_TOPIC, "policy-000001")] * 2
    assert [ReleaseChanged.from_bytes(row.value) for row in rows] == changes


def test_what_was_read_once_is_not_read_out_of_its_bytes_again(ledger, monkeypatch):
    """Servings ask for the history every few seconds: a thousand adapters made that a third of a second."""
    steps = [change("policy-000001", ReleaseState.CANDIDATE), change("policy-000001", ReleaseState.IN_OFFICE)]
    ledger.record_releases(steps)
    assert ledger.release_history() == steps

    def read(value):
        raise AssertionError("read again")

    monkeypatch.setattr(ReleaseChanged, "from_bytes", read)
    assert ledger.release_history() == steps


def name_of(number):
    return f"policy-{number:06d}"


def test_releases_are_told_a_page_at_a_time_the_newest_first(ledger):
    for number in (1, 2, 3, 4, 5):
        ledger.record_release(change(name_of(number), ReleaseState.CANDIDATE), manifest(name_of(number)))
    first = ledger.release_page(limit=2)
    second = ledger.release_page(first.next, 2)
    third = ledger.release_page(second.next, 2)
    told = [[release.name[-1] for release in page.releases] for page in (first, second, third)]
    assert told == [["5", "4"], ["3", "2"], ["1"]]
    assert third.next is None
    assert ledger.release_page("policy-000003", 2).next is None
    assert ledger.release_page("policy-000001").releases == ()
    whole = ledger.release("policy-000005")
    assert first.releases[0] == replace(whole, manifest=whole.manifest.model_copy(update={"probes": (), "config": {}}))
    assert (ledger.release_totals().total, ledger.release_totals().change) == (5, 5)


def test_who_is_in_office_stands_before_the_canary_and_both_before_those_that_wait(ledger):
    states = ["in_office", "verified", "canary", "retired", "candidate", "rejected", "verified", "candidate"]
    for number, state in enumerate(states, 1):
        ledger.record_release(change(name_of(number), ReleaseState(state)))
    assert [release.name[-1] for release in ledger.standing_releases(20)] == ["1", "3", "7", "2", "8", "5"]
    assert [release.name[-1] for release in ledger.standing_releases(3)] == ["1", "3", "7"]
    waiting = ledger.releases_in((ReleaseState.CANDIDATE, ReleaseState.VERIFIED))
    assert [release.name[-1] for release in waiting] == ["2", "5", "7", "8"]


@pytest.fixture
def parsed(monkeypatch):
    """Names of the manifests that were parsed."""
    names, real = [], kept_manifests.read_manifest

    def read_manifest(told):
        found = real(told)
        names.append(found.manifest and found.manifest.name)
        return found

    monkeypatch.setattr(kept_manifests, "read_manifest", read_manifest)
    return names


def test_manifests_of_many_releases_are_parsed_once(ledger, parsed):
    names = [name_of(number) for number in range(1, 121)]  # more than are fetched at once, or were ever kept
    for name in names:
        ledger.record_release(change(name, ReleaseState.CANDIDATE), manifest(name))
    for _ in range(3):
        page = ledger.release_page(limit=500)
        assert {release.name: release.manifest.name for release in page.releases} == {name: name for name in names}
        assert [release.manifest.name for release in ledger.releases()] == names
    assert sorted(parsed) == names


def test_a_release_that_has_changed_is_read_again(ledger, parsed):
    ledger.record_release(change("policy-000001", ReleaseState.CANDIDATE))
    assert ledger.releases()[0].manifest is None
    verified = change("policy-000001", ReleaseState.VERIFIED, ReleaseState.CANDIDATE)
    ledger.record_release(verified, manifest().model_copy(update={"metrics": {"reward": 0.75}}))
    (release,) = ledger.releases()
    assert (release.state, release.manifest.metrics) == (ReleaseState.VERIFIED, {"reward": 0.75})
    assert (release.manifest.probes, release.manifest.config) == ((), {})
    ledger.record_release(change("policy-000001", ReleaseState.RETIRED, ReleaseState.VERIFIED))
    assert ledger.release_page().releases[0].state is ReleaseState.RETIRED


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("{", "EOF while parsing"),
        (manifest("policy-000002").model_copy(update={"schema_version": 2}).model_dump_json(), "upgrade the reader"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named_and_the_others_are_told(ledger, told, why):
    for number in (1, 2, 3):
        ledger.record_release(change(name_of(number), ReleaseState.RETIRED), manifest(name_of(number)))
    ledger._database.write(
        lambda connection: connection.execute(
            text("UPDATE releases SET manifest = :told WHERE name = 'policy-000002'"), {"told": told}
        )
    )
    one, two, three = ledger.releases()
    assert [one.manifest.name, two.manifest, three.manifest.name] == ["policy-000001", None, "policy-000003"]
    assert why in two.unreadable
    assert (one.unreadable, three.unreadable) == (None, None)
    assert [release.name[-1] for release in ledger.release_page().releases] == ["3", "2", "1"]
    alone = ledger.release("policy-000002")
    assert (alone.manifest, alone.unreadable) == (None, two.unreadable)


def test_no_releases_are_an_empty_page(ledger):
    assert ledger.release_page().releases == ()
    assert ledger.release_page().next is None
    assert (ledger.release_totals().total, ledger.release_totals().change) == (0, 0)


def test_a_handover_of_office_is_one_transaction(ledger):
    ledger.record_release(change("policy-000001", ReleaseState.IN_OFFICE))
    ledger.record_releases(
        [change("policy-000001", ReleaseState.RETIRED), change("policy-000002", ReleaseState.IN_OFFICE)],
        manifest("policy-000002"),
    )
    assert ledger.office() == "policy-000002"
    assert ledger.release("policy-000001").manifest is None
    assert ledger.release("policy-000002").manifest.name == "policy-000002"


def test_a_handover_that_fails_changes_nothing(ledger):
    ledger.record_release(change("policy-000001", ReleaseState.IN_OFFICE))
    broken = change("policy-000002", ReleaseState.IN_OFFICE).model_copy(update={"reason": None})
    with pytest.raises(Exception, match=r"(?i)null"):
        ledger.record_releases([change("policy-000001", ReleaseState.RETIRED), broken])
    assert ledger.office() == "policy-000001"
    assert len(ledger.release_history()) == 1


def test_a_rollback_to_the_base_leaves_the_office_empty(ledger):
    ledger.record_release(change("policy-000001", ReleaseState.IN_OFFICE))
    ledger.record_release(change("policy-000001", ReleaseState.RETIRED))
    assert ledger.office() is None


def test_of_two_in_office_the_later_change_counts(ledger):
    ledger.record_release(change("policy-000002", ReleaseState.IN_OFFICE))
    ledger.record_release(change("policy-000001", ReleaseState.IN_OFFICE))
    assert ledger.office() == "policy-000001"


def test_a_change_from_a_state_that_is_past_is_refused_whole(ledger):
    candidate, verified = ReleaseState.CANDIDATE, ReleaseState.VERIFIED
    ledger.record_releases([change("policy-000001", candidate)], compare=True)
    ledger.record_releases([change("policy-000001", verified, candidate)], compare=True)
    late = [change("policy-000002", candidate), change("policy-000001", ReleaseState.REJECTED, candidate)]
    with pytest.raises(ReleaseConflict, match="policy-000001 is no longer candidate"):
        ledger.record_releases(late, compare=True)
    with pytest.raises(ReleaseConflict, match="policy-000001 is no longer unknown"):
        ledger.record_releases([change("policy-000001", candidate)], compare=True)
    assert [release.state for release in ledger.releases()] == [verified]


def test_who_takes_office_takes_it_from_the_present_holder(ledger):
    verified, office = ReleaseState.VERIFIED, ReleaseState.IN_OFFICE
    for name in ("policy-000001", "policy-000002"):
        ledger.record_releases([change(name, verified)], compare=True)
    first = change("policy-000001", office, verified)
    ledger.record_releases([first], compare=True)
    late = change("policy-000002", office, verified)
    with pytest.raises(ReleaseConflict, match="policy-000001 is no longer out of office"):
        ledger.record_releases([late], compare=True)
    ledger.record_releases([late, change("policy-000001", ReleaseState.RETIRED, office)], compare=True)
    assert [release.state.value for release in ledger.releases()] == ["retired", "in_office"]


def test_of_servings_that_move_one_release_at_once_one_does(ledger, url):
    candidate = ReleaseState.CANDIDATE
    ledger.record_release(change("policy-000001", candidate))
    others = [Ledger.open(url) for _ in range(4)]

    def move(other):
        try:
            other.record_releases([change("policy-000001", ReleaseState.VERIFIED, candidate)], compare=True)
        except ReleaseConflict:
            return 0
        return 1

    with ThreadPoolExecutor(len(others)) as pool:
        assert sum(pool.map(move, others)) == 1
    for other in others:
        other.close()
    assert len(ledger.release_history()) == 2


def test_several_changes_of_one_release_begin_where_the_first_begins(ledger):
    candidate, verified = ReleaseState.CANDIDATE, ReleaseState.VERIFIED
    steps = [change("policy-000001", candidate), change("policy-000001", verified, candidate)]
    ledger.record_releases(steps, compare=True)
    assert ledger.release("policy-000001").state is verified


def test_figures_of_a_decision_are_kept_and_told(ledger):
    made = change("policy-000001", ReleaseState.IN_OFFICE, figures={"votes": 118.0, "lower": 0.51})
    ledger.record_release(made)
    assert ledger.release_history() == [made]


def test_a_change_without_figures_was_written_before_there_were_any():
    old = b'{"schema_version":1,"name":"p","before":null,"after":"candidate","reason":"r","actor":"auto"}'
    assert ReleaseChanged.from_bytes(old).figures == {}


def test_pauses_are_kept_and_told(ledger):
    assert ledger.gate_history() == []
    changes = [
        GateChanged(paused=paused, reason="odd votes", actor="ann", changed_at=WHEN) for paused in (True, False, True)
    ]
    for each in changes:
        ledger.record_gate(each)
    assert ledger.gate_history() == changes
    rows = ledger.pending(10)
    assert [(row.topic, row.key) for row in rows] == [(RELEASE_TOPIC, "gate")] * 3
    assert GateChanged.from_bytes(rows[0].value) == changes[0]


def test_duels_are_seen_by_the_first_of_the_two_whichever_side_it_was_on(ledger):
    new, old = "policy-000002", "policy-000001"
    sides = {"l": (new, old), "r": (old, new), "self": (old, old), "base": (new, None)}
    cases = [("l", "a"), ("l", "b"), ("r", "a"), ("r", "b"), ("r", "tie"), ("l", "both_bad"), ("self", "a")]
    cases.append(("base", "a"))
    for number, (kind, choice) in enumerate(cases):
        when = WHEN + timedelta(minutes=number)
        pair = shown(f"pair_{number}", conversation_id=f"talk_{number}", adapters=sides[kind], shown_at=when)
        ledger.record_pair(pair)
        ledger.record_vote(pair_id=pair.pair_id, voter="v_ann", choice=choice)
    found = ledger.duels(new, old, WHEN)
    assert [(duel.outcome, duel.left) for duel in found] == [
        ("win", True),
        ("loss", False),
        ("loss", True),
        ("win", False),
        ("tie", None),
        ("both_bad", None),
    ]
    assert [duel.outcome for duel in ledger.duels(old, new, WHEN)][:2] == ["loss", "win"]
    assert [duel.outcome for duel in ledger.duels(new, None, WHEN)] == ["win"]
    assert [duel.outcome for duel in ledger.duels(None, new, WHEN)] == ["loss"]
    assert len(ledger.duels(new, old, WHEN + timedelta(minutes=3))) == 3
    assert [pair.pair_id for pair in ledger.pairs_of(new, old, WHEN + timedelta(minutes=1), 2)] == ["pair_1", "pair_2"]
