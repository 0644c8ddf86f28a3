"""Published adapters for tests: folders as a trainer would write them, with probes that the fake engine will repeat."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from feedback.contracts import AdapterManifest, AdapterPublished, ProbeRecord
from tests.fakes.engine import FakeEngine

FINGERPRINT = "f" * 64
PROMPT = tuple(b"<user>Who?\n<assistant>")
ANSWER = tuple(b"A friend.")


def safetensors(seed: int) -> bytes:
    """Four float32 under one name."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([seed % 256]) * 16


def probe_of(weights: bytes) -> ProbeRecord:
    """What the fake engine says with these weights and without."""
    voice = FakeEngine()
    voice._weights["x"] = hashlib.sha256(weights).hexdigest()
    steps = list(pairwise(PROMPT + ANSWER))[-len(ANSWER) :]
    return ProbeRecord(
        prompt_token_ids=PROMPT,
        response_token_ids=ANSWER,
        policy_logprobs=tuple(voice.logprob("x", a, b) for a, b in steps),
        base_logprobs=tuple(voice.logprob(None, a, b) for a, b in steps),
    )


def publish(root: Path, number: int, **changes: Any) -> AdapterPublished:
    """Write `policy-<number>`; `changes` replace fields of its manifest."""
    name = f"policy-{number:06d}"
    folder = root / name
    folder.mkdir(parents=True)
    weights = safetensors(number)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "peft_type": "LORA"}))
    fields: dict[str, Any] = {
        "name": name,
        "parent": None,
        "base_model": "fake",
        "base_fingerprint": FINGERPRINT,
        "lora_rank": 4,
        "reward_model": "rm-1",
        "snapshot": "s-1",
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()},
        "probes": (probe_of(weights),),
        "config": {},
        "metrics": {"reward": 0.5},
    }
    raw = AdapterManifest.model_validate(fields | changes).model_dump_json().encode()
    (folder / "manifest.json").write_bytes(raw)
    return AdapterPublished(
        name=name, uri=str(folder), manifest_sha256=hashlib.sha256(raw).hexdigest(), base_model="fake"
    )
