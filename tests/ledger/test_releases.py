"""Releases: states, history, office."""

from datetime import UTC, datetime

import pytest

from feedback.contracts import RELEASE_TOPIC, AdapterManifest, ProbeRecord, ReleaseChanged, ReleaseState
from feedback.ledger import Release

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
