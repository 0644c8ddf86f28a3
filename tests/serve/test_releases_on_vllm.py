"""Releases on the real engine: PEFT adapters, probes by transformers and PEFT, streams that run meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from feedback.contracts import AdapterManifest, AdapterPublished, ProbeRecord
from feedback.fingerprint import base_fingerprint
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import ServeDeps, create_app
from serve.config import ServeConfig
from serve.engines.base import Engine
from serve.releases.manager import ReleaseManager
from tests.serve.conftest import client_of, ready_deps

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PROMPT = (5, 9, 12, 30, 41, 7)
ANSWER = (17, 60, 99, 23, 150, 8, 77, 31)
RANK = 8


def logprobs(model: Any) -> tuple[float, ...]:
    """What transformers says of the answer."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + ANSWER])).logits[0].double()
    steps = torch.log_softmax(logits, -1)[len(PROMPT) - 1 : -1]
    return tuple(float(step[token]) for step, token in zip(steps, ANSWER, strict=True))


def probe_of(model: Path, adapter: Path) -> ProbeRecord:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    bare = logprobs(base)
    return ProbeRecord(
        prompt_token_ids=PROMPT,
        response_token_ids=ANSWER,
        policy_logprobs=logprobs(PeftModel.from_pretrained(base, str(adapter))),
        base_logprobs=bare,
    )


def publish(root: Path, name: str, model: Path, adapter: Path, spoken_by: Path) -> AdapterPublished:
    """Put `adapter` into the store, with the probe of another where it is to be found out."""
    folder = root / name
    shutil.copytree(adapter, folder)
    raw = (
        AdapterManifest(
            name=name,
            parent=None,
            base_model="tiny",
            base_fingerprint=base_fingerprint(model),
            lora_rank=RANK,
            reward_model="rm-1",
            snapshot="s-1",
            files={f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()},
            probes=(probe_of(model, spoken_by),),
            config={},
            metrics={},
        )
        .model_dump_json()
        .encode()
    )
    (folder / "manifest.json").write_bytes(raw)
    digest = hashlib.sha256(raw).hexdigest()
    return AdapterPublished(name=name, uri=str(folder), manifest_sha256=digest, base_model="tiny")


@pytest_asyncio.fixture(loop_scope="session")
async def deps(vllm_engine: Engine, tiny_model: Path, tmp_path: Path) -> AsyncIterator[ServeDeps]:
    paths = DataPaths(tmp_path)
    paths.create()
    ledger = Ledger.open(paths.ledger_url)
    fingerprint = partial(base_fingerprint, tiny_model)
    yield ready_deps(vllm_engine, ledger, paths, ServeConfig(), base_model="tiny", base_fingerprint=fingerprint)
    for name in vllm_engine.adapters():
        await vllm_engine.unload_adapter(name)
    ledger.close()


async def keep_asking(client: httpx.AsyncClient, stop: asyncio.Event) -> list[int]:
    ask = {"messages": [{"role": "user", "content": "what is a good answer?"}], "max_tokens": 24}
    statuses = []
    while not stop.is_set():
        statuses.append((await client.post("/v1/pairs", json=ask)).status_code)
    return statuses


async def test_a_real_adapter_takes_office_under_load_and_a_wrong_one_does_not(
    deps: ServeDeps, tiny_model: Path, tiny_adapters: tuple[Path, ...]
) -> None:
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    stop = asyncio.Event()
    first, second, third = tiny_adapters
    adapters = deps.paths.adapters
    right = [
        await asyncio.to_thread(publish, adapters.parent / "made", f"policy-00090{n}", tiny_model, folder, folder)
        for n, folder in ((1, first), (2, second))
    ]
    wrong = await asyncio.to_thread(publish, adapters.parent / "made", "policy-000903", tiny_model, third, first)
    async with client_of(app) as client:
        people = [asyncio.create_task(keep_asking(client, stop)) for _ in range(3)]
        for event in (*right, wrong):
            (adapters.parent / "made" / event.name).rename(adapters / event.name)
            manager.hear(event)
            async with asyncio.timeout(60):
                while deps.ledger.release(event.name) is None:
                    await asyncio.sleep(0.02)
                await manager.settled()
        stop.set()
        statuses = [status for task in people for status in await task]
    assert statuses
    assert set(statuses) == {200}
    assert deps.office.holder == "policy-000902"
    found = {release.name: release for release in deps.ledger.releases()}
    assert {name: release.state.value for name, release in found.items()} == {
        "policy-000901": "retired",
        "policy-000902": "in_office",
        "policy-000903": "rejected",
    }
    assert "probe failed" in found["policy-000903"].reason
    assert "policy-000903" not in deps.engine.adapters()
    assert await manager.rollback("worse") == "policy-000901"
    await manager.close()
