"""The kill harness's judgement of the trainer: each breach is found, and a kept promise is none."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.durability.training import adapters
from benchmarks.durability.training_verdict import CycleSeen, Published, Training, training_findings

CYCLES = (
    CycleSeen(1, "published", None, "s1", "policy-000001"),
    CycleSeen(2, "refused", "no better than a coin", "s2", None),
    CycleSeen(3, "published", None, "s3", "policy-000002"),
)
ADAPTERS = (Published("policy-000001", "s1", "d1", None), Published("policy-000002", "s3", "d2", None))
KEPT = Training(
    cycles=CYCLES,
    adapters=ADAPTERS,
    announced=(("policy-000001", "d1"), ("policy-000002", "d2"), ("policy-000001", "d1")),
    snapshots=frozenset({"s1", "s2", "s3"}),
    newest="s3",
)


def test_a_kept_promise_is_no_finding() -> None:
    """An adapter may be announced twice: serving knows it by its name."""
    assert training_findings(KEPT) == []


def test_a_trainer_that_refused_its_last_adapter_may_announce_the_others_later() -> None:
    refused = (CYCLES[0], replace(CYCLES[1], snapshot="s3"))
    assert training_findings(replace(KEPT, cycles=refused, adapters=ADAPTERS[:1], announced=())) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cycles": (replace(CYCLES[0], outcome="failed", reason="Odd: 1", adapter=None), *CYCLES[1:])}, "1 (Odd: 1)"),
        ({"cycles": (CYCLES[0], replace(CYCLES[1], outcome=None), CYCLES[2])}, "cycles left open: 2"),
        (
            {"cycles": (CYCLES[0], replace(CYCLES[1], adapter="policy-000001"), CYCLES[2])},
            "adapters of more than one cycle: policy-000001",
        ),
        ({"cycles": CYCLES[::2], "newest": "s4"}, "the last cycle read snapshot s3, not s4"),
        ({"adapters": (*ADAPTERS, Published("policy-000003", "s3", "d3", None))}, "that no cycle published: policy-0"),
        ({"adapters": ADAPTERS[1:], "announced": KEPT.announced[1:2]}, "published by a cycle and not there: policy-0"),
        ({"adapters": (replace(ADAPTERS[0], snapshot="s2"), ADAPTERS[1])}, "of another snapshot than their cycle's"),
        ({"snapshots": frozenset({"s2", "s3"})}, "of a snapshot that isn't there, or was changed: policy-000001"),
        ({"announced": (*KEPT.announced, ("policy-000009", "d9"))}, "not there as announced: policy-000009"),
        ({"announced": KEPT.announced[:1]}, "published and never announced: policy-000002"),
        ({"adapters": (), "cycles": CYCLES[1:2], "announced": ()}, "no cycle published an adapter"),
    ],
)
def test_each_breach_is_found(change: dict[str, object], words: str) -> None:
    found = training_findings(replace(KEPT, **change))  # type: ignore[arg-type]
    assert words in " | ".join(found)


def test_an_adapter_that_is_not_whole_may_not_be_announced() -> None:
    broken = (ADAPTERS[0], replace(ADAPTERS[1], trouble="adapter_model.safetensors is missing"))
    assert training_findings(replace(KEPT, adapters=broken)) == [
        "adapters that aren't whole: policy-000002 (adapter_model.safetensors is missing)",
        "announced and not there as announced: policy-000002",
    ]


def stored(folder: Path) -> Path:
    """An adapter's folder, as a trainer leaves it."""
    adapter = folder / "policy-000001"
    adapter.mkdir()
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    for name, content in files.items():
        (adapter / name).write_bytes(content)
    manifest = {
        "name": "policy-000001",
        "parent": None,
        "base_model": "tiny",
        "base_fingerprint": "f",
        "lora_rank": 4,
        "reward_model": "r",
        "snapshot": "s1",
        "files": {name: sha256(content).hexdigest() for name, content in files.items()},
        "probes": [
            {"prompt_token_ids": [1], "response_token_ids": [2], "policy_logprobs": [-1.0], "base_logprobs": [-2.0]}
        ],
        "config": {},
        "metrics": {},
    }
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    return adapter


def test_a_whole_adapter_is_seen_with_its_snapshot(tmp_path: Path) -> None:
    manifest = (stored(tmp_path) / "manifest.json").read_bytes()
    assert adapters(tmp_path) == [Published("policy-000001", "s1", sha256(manifest).hexdigest(), None)]


@pytest.mark.parametrize(
    ("file", "content", "trouble"),
    [
        ("adapter_model.safetensors", None, "adapter_model.safetensors is missing"),
        ("adapter_model.safetensors", b"weigh", "adapter_model.safetensors is not what the manifest says"),
        ("manifest.json", None, "no manifest: FileNotFoundError"),
        ("manifest.json", b'{"name": ', "no manifest: ValidationError"),
    ],
)
def test_half_an_adapter_is_seen_as_such(tmp_path: Path, file: str, content: bytes | None, trouble: str) -> None:
    path = stored(tmp_path) / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    (found,) = adapters(tmp_path)
    assert found.trouble == trouble
