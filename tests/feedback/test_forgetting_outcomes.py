"""Forgetting says what it found: nobody of that name, somebody, or somebody who was forgotten already."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from feedback.contracts import VoterForgotten
from feedback.dataset import Dataset, DatasetCorrupt
from feedback.forgetting import ForgottenReport, Outcome, forget
from feedback.ledger.forgetting import Forgotten
from tests.feedback.events import pair, thumb, vote
from tests.feedback.test_lineage import Site

VOTER = pair(1).voter


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.ledger.close()


def forgotten(site: Site, voter: str = VOTER) -> ForgottenReport:
    return forget(site.ledger, site.dataset, site.adapters, voter)


def test_who_was_never_here_is_unknown(site: Site) -> None:
    site.vote(1)
    report = forgotten(site, "v_nobody")
    assert (report.outcome, report.before) == (Outcome.UNKNOWN, None)
    assert "No conversation, pair or vote of v_nobody was found" in report.verdict()
    assert site.ledger.counts().votes == 1


def test_what_the_unknown_said_and_comes_in_later_is_refused(site: Site) -> None:
    """The log may hold more than ledger and dataset have seen: of another serving, or of before a restored backup."""
    forgotten(site)
    assert site.dataset.append_votes([vote(1)]) is None
    assert site.dataset.append_pairs([pair(1)]) is None
    assert [event.voter for event in site.ledger.forgotten()] == [VOTER]


def test_forgetting_again_says_that_it_was_done(site: Site) -> None:
    site.vote(1)
    first = forgotten(site)
    assert (first.outcome, first.before, first.votes) == (Outcome.FORGOTTEN, None, 1)
    done = site.ledger.forgotten()[0].forgotten_at
    again = forgotten(site)
    assert (again.outcome, again.before, again.votes) == (Outcome.ALREADY, done, 0)
    assert again.snapshots == first.snapshots
    assert f"{VOTER} was forgotten already ({done:%Y-%m-%d}" in again.verdict()


def test_who_came_back_is_forgotten_anew(site: Site) -> None:
    site.vote(1)
    forgotten(site)
    site.ledger.record_pair(pair(1))
    assert forgotten(site).outcome is Outcome.FORGOTTEN


def test_the_ledger_forgets_though_the_dataset_cannot(site: Site) -> None:
    site.vote(1)
    (site.dataset.root / "forgotten").mkdir()
    (site.dataset.root / "forgotten" / "v_2.json").write_text("{")
    with pytest.raises(DatasetCorrupt, match="run `hustings forget v_2` again"):
        forgotten(site)
    assert site.ledger.counts().votes == 0
    (site.dataset.root / "forgotten" / "v_2.json").unlink()
    assert forgotten(site).outcome is Outcome.FORGOTTEN


def test_a_curator_that_was_quicker_makes_nobody_unknown(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.dataset.append_votes([vote(1)])
    real = site.ledger.forget

    def forget_and_tell(voter: str) -> Forgotten:
        gone = real(voter)
        Dataset(site.dataset.root).forget(gone.event)
        return gone

    monkeypatch.setattr(site.ledger, "forget", forget_and_tell)
    assert forgotten(site).outcome is Outcome.FORGOTTEN


def test_a_lost_ledger_makes_nobody_unknown_whom_the_dataset_has(site: Site) -> None:
    site.dataset.append_votes([vote(1)])
    assert forgotten(site).outcome is Outcome.FORGOTTEN
    assert list(site.dataset.votes()) == []


def test_a_lost_ledger_forgets_no_tombstone(site: Site) -> None:
    earlier = vote(1).cast_at + timedelta(hours=1)
    site.dataset.forget(VoterForgotten(event_id="f1", voter=VOTER, until=earlier, forgotten_at=earlier))
    report = forgotten(site)
    assert (report.outcome, report.before) == (Outcome.ALREADY, earlier)


def test_a_thumb_is_something_too(site: Site) -> None:
    site.ledger.record_answer(thumb(1).answer)
    assert forgotten(site, thumb(1).voter).outcome is Outcome.FORGOTTEN
