"""A manifest is read once, however often somebody asks where an adapter comes from."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback import manifests
from feedback.contracts import AdapterManifest, ReleaseChanged, ReleaseState
from feedback.dataset import Dataset
from feedback.ledger import Ledger
from feedback.lineage import Lineage
from feedback.manifests import Manifests
from tests.feedback.test_lineage import publish


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        publish(tmp_path / "adapters", number, f"s-{number}")
    return tmp_path / "adapters"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read, and the ledger's releases."""
    counted: Counter[str] = Counter()
    real, every = manifests.read_manifest, Ledger.releases

    def read_manifest(path: Path) -> AdapterManifest:
        counted[path.parent.name] += 1
        return real(path)

    def releases(self: Ledger) -> Any:
        counted["ledger"] += 1
        return every(self)

    monkeypatch.setattr(manifests, "read_manifest", read_manifest)
    monkeypatch.setattr(Ledger, "releases", releases)
    return counted


def move(ledger: Ledger, name: str, after: ReleaseState, manifest: AdapterManifest | None = None) -> None:
    ledger.record_release(
        ReleaseChanged(name=name, before=None, after=after, reason="a test", actor="auto"), manifest=manifest
    )


def test_each_is_read_once(ledger: Ledger, adapters: Path, read: Counter[str], tmp_path: Path) -> None:
    kept, dataset = Manifests(ledger, adapters), Dataset(tmp_path / "dataset")
    for _ in range(3):
        assert Lineage(ledger, dataset, kept).adapter("policy-000002").snapshot == "s-2"
    assert read == {"policy-000001": 1, "policy-000002": 1, "policy-000003": 1, "ledger": 1}


def test_only_what_is_new_or_was_changed_is_read_again(ledger: Ledger, adapters: Path, read: Counter[str]) -> None:
    kept = Manifests(ledger, adapters)
    assert set(kept().readable) == {"policy-000001", "policy-000002", "policy-000003"}
    read.clear()
    publish(adapters, 4, "s-4")
    shutil.rmtree(adapters / "policy-000001")
    shutil.rmtree(adapters / "policy-000002")
    publish(adapters, 2, "s-9")
    os.utime(adapters / "policy-000002" / "manifest.json", ns=(1, 1))
    assert {name: one.snapshot for name, one in kept().readable.items()} == {
        "policy-000002": "s-9",
        "policy-000003": "s-3",
        "policy-000004": "s-4",
    }
    assert read == {"policy-000002": 1, "policy-000004": 1}


def test_the_ledger_is_read_again_when_a_release_has_changed(
    ledger: Ledger, adapters: Path, read: Counter[str]
) -> None:
    publish(adapters.parent / "elsewhere", 7, "s-7")
    elsewhere = AdapterManifest.model_validate_json(
        (adapters.parent / "elsewhere" / "policy-000007" / "manifest.json").read_bytes()
    )
    kept = Manifests(ledger, adapters)
    assert "policy-000007" not in kept().readable
    move(ledger, "policy-000007", ReleaseState.VERIFIED, elsewhere)
    for _ in range(3):
        assert kept().readable["policy-000007"].reward_model == "reward-7"
    assert read["ledger"] == 2


def test_one_that_is_taken_away_meanwhile_is_not_there(
    ledger: Ledger, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hustings` may prune a folder between its being listed and its being read."""
    real = manifests.read_manifest

    def read_manifest(path: Path) -> AdapterManifest:
        if path.parent.name == "policy-000002":
            path.unlink()
        return real(path)

    monkeypatch.setattr(manifests, "read_manifest", read_manifest)
    assert set(Manifests(ledger, adapters)().readable) == {"policy-000001", "policy-000003"}
