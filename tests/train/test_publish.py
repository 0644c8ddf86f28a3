"""What a damaged manifest of one adapter keeps the trainer from, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedback.contracts import ADAPTER_TOPIC
from tests.fakes.event_log import FakeEventLog
from tests.serve.adapters import publish as write_adapter
from train import publish


@pytest.mark.parametrize("damage", ["{", "[]", '{"name": "policy-000002"}', ""])
def test_one_damaged_manifest_keeps_no_other_from_being_announced(tmp_path: Path, damage: str) -> None:
    for number in (1, 2, 3):
        write_adapter(tmp_path, number)
    manifest = tmp_path / "policy-000002" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(damage)
    log = FakeEventLog()
    assert publish.announce_missing(log, tmp_path) == ["policy-000001", "policy-000003"]
    assert len(log.records(ADAPTER_TOPIC)) == 2
    manifest.write_text(whole)
    assert publish.announce_missing(log, tmp_path) == ["policy-000002"]
