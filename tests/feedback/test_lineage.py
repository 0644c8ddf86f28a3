"""Lineage both ways, and a retraining without a forgotten voter that proves itself by its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback.contracts import AdapterManifest, ProbeRecord
from feedback.dataset import Dataset
from feedback.forgetting import RETRAIN, forget
from feedback.ledger import Ledger
from feedback.lineage import AdapterLine, Lineage, PairLine, SnapshotLine, UnknownId, VoteLine, VoterLine
from tests.feedback.events import pair

VOTER = pair(1).voter


def publish(folder: Path, number: int, snapshot: str, parent: str | None = None) -> None:
    name = f"policy-{number:06d}"
    manifest = AdapterManifest(
        name=name,
        parent=parent,
        base_model="tiny",
        base_fingerprint="f" * 64,
        lora_rank=4,
        reward_model=f"reward-{number}",
        snapshot=snapshot,
        files={},
        probes=(
            ProbeRecord(prompt_token_ids=(1,), response_token_ids=(2,), policy_logprobs=(-1.0,), base_logprobs=(-2.0,)),
        ),
        config={},
        metrics={},
    )
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.json").write_text(manifest.model_dump_json())


class Site:
    """A ledger whose votes reach the dataset, and a folder of adapters."""

    def __init__(self, root: Path) -> None:
        self.ledger = Ledger.open(f"sqlite:///{root / 'ledger.sqlite3'}")
        self.dataset = Dataset(root / "dataset")
        self.adapters = root / "adapters"

    def vote(self, number: int) -> str:
        self.ledger.record_pair(pair(number))
        self.ledger.record_vote(pair_id=f"p{number}", voter=pair(number).voter, choice="b")
        cast = self.ledger.vote(f"p{number}", pair(number).voter)
        assert cast is not None
        self.dataset.append_pairs([pair(number)])
        self.dataset.append_votes([cast])
        return cast.vote_id

    def lineage(self) -> Lineage:
        return Lineage(self.ledger, self.dataset, self.adapters)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.ledger.close()


def test_from_an_answer_to_what_its_adapter_was_made_of_and_from_a_vote_to_what_it_made(site: Site) -> None:
    early = site.vote(0)
    first = site.dataset.build_snapshot().id
    late = site.vote(1)
    second = site.dataset.build_snapshot().id
    publish(site.adapters, 1, first)
    publish(site.adapters, 2, second, parent="policy-000001")

    shown = site.lineage().trace("p1")  # side b of every test pair is policy-000001's
    assert isinstance(shown, PairLine)
    assert shown.answers[0].adapter is None
    made_of = shown.answers[1].adapter
    assert made_of is not None
    assert (made_of.reward_model, made_of.snapshot, made_of.votes) == ("reward-1", first, 1)
    assert [vote.vote for vote in shown.votes] == [late]

    vote = site.lineage().trace(early)
    assert isinstance(vote, VoteLine)
    assert (vote.pair, set(vote.snapshots), vote.adapters) == (
        "p0",
        {first, second},
        ("policy-000001", "policy-000002"),
    )
    newer = site.lineage().trace(late)
    assert isinstance(newer, VoteLine)
    assert (newer.snapshots, newer.adapters, newer.descendants) == ((second,), ("policy-000002",), ())

    child = site.lineage().trace("policy-000002")
    assert isinstance(child, AdapterLine)
    assert (child.ancestors, child.snapshots) == (("policy-000001",), (second, first))
    held = site.lineage().trace(first)
    assert isinstance(held, SnapshotLine)
    assert (held.adapters, held.descendants) == (("policy-000001",), ("policy-000002",))


def test_a_child_passes_on_what_its_parent_was_trained_on_and_a_fresh_start_does_not(site: Site) -> None:
    site.vote(0)
    site.vote(1)
    tainted = site.dataset.build_snapshot().id
    publish(site.adapters, 1, tainted)

    report = forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert (report.pairs, report.votes, report.snapshots) == (1, 1, (tainted,))
    assert (report.adapters, report.descendants, report.remedy) == (("policy-000001",), (), RETRAIN)

    clean = site.dataset.build_snapshot().id
    assert clean != tainted
    publish(site.adapters, 2, clean, parent="policy-000001")
    publish(site.adapters, 3, clean)
    lineage = site.lineage()
    assert lineage.adapter("policy-000001").forgotten == (VOTER,)
    assert lineage.adapter("policy-000002").forgotten == (VOTER,)
    assert lineage.adapter("policy-000003").forgotten == ()
    gone = lineage.trace(VOTER)
    assert isinstance(gone, VoterLine)
    assert (gone.adapters, gone.descendants) == (("policy-000001",), ("policy-000002",))


def test_a_voter_of_whom_nothing_was_trained_needs_no_retraining(site: Site) -> None:
    site.vote(0)
    site.vote(1)
    report = forget(site.ledger, site.dataset, site.adapters, VOTER)
    assert (report.adapters, report.remedy) == ((), None)


def test_what_is_nowhere_is_named(site: Site) -> None:
    for wanted in ("vote_none", "policy-000009"):
        with pytest.raises(UnknownId, match=wanted):
            site.lineage().trace(wanted)
