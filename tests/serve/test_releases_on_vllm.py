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

from feedback.contracts import AdapterManifest, AdapterPublished, ProbeRecord, ReleaseState
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


async def elect(client: httpx.AsyncClient, ledger: Ledger, adapter: str, *, answers: int, likes: bool) -> None:
    """Until the adapter is no longer a canary, people whom nobody knows see it beside the office-holder, and vote."""
    for number in range(40):
        release = ledger.release(adapter)
        if release is None or release.state is not ReleaseState.CANARY:
            return
        somebody = {"X-Hustings-Voter": f"{adapter}-{number}"}
        ask = {"messages": [{"role": "user", "content": "what is a good answer?"}], "max_tokens": 6, "n": answers}
        shown = (await client.post("/v1/pairs", json=ask, headers=somebody)).json()
        pair = ledger.pair(shown["pair_id"])
        assert pair is not None
        mine = [side.position for side in pair.completions if side.adapter == adapter]
        others = [side.position for side in pair.completions if side.adapter != adapter]
        if not (mine and others):
            continue  # asked just before the canary stood, or just after it was decided
        order = [mine, others] if likes else [others, mine]
        vote = {"choice": order[0][0]} if answers == 2 else {"ranking": order}
        status = (await client.post("/v1/votes", json=vote | {"pair_id": pair.pair_id}, headers=somebody)).status_code
        assert status == 201
        await asyncio.sleep(0.05)  # the gate looks at its own pace; people go on meanwhile


async def test_voters_put_a_real_adapter_into_office_and_send_the_next_away(
    deps: ServeDeps, tiny_model: Path, tiny_adapters: tuple[Path, ...]
) -> None:
    config = ServeConfig(
        releases={"gate": "votes", "canary": {"ballot_votes": 1, "min_votes": 8}},
        contenders={"candidate_share": 1.0, "watch_share": 0.0},  # the last pair: the holder alone
    )
    deps = ready_deps(
        deps.engine, deps.ledger, deps.paths, config, base_model="tiny", base_fingerprint=deps.base_fingerprint
    )
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    first, second = "policy-000911", "policy-000912"
    async with client_of(app) as client:
        for name, folder, likes, answers in ((first, tiny_adapters[0], True, 2), (second, tiny_adapters[1], False, 3)):
            made = deps.paths.adapters.parent / "made"
            event = await asyncio.to_thread(publish, made, name, tiny_model, folder, folder)
            (made / name).rename(deps.paths.adapters / name)  # whole: servings look through the folder by themselves
            manager.hear(event)
            async with asyncio.timeout(60):
                while (release := deps.ledger.release(name)) is None or release.state is not ReleaseState.CANARY:
                    await asyncio.sleep(0.02)
                await elect(client, deps.ledger, name, answers=answers, likes=likes)
                await manager.settled()
        answer = await client.post("/v1/pairs", json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})
    told = {release.name: (release.state.value, release.reason) for release in deps.ledger.releases()}
    assert (told[first][0], told[first][1][:4]) == ("in_office", "won ")
    assert (told[second][0], told[second][1][:5]) == ("rejected", "lost:")
    states = [change.after.value for change in deps.ledger.release_history(first)]
    assert states == ["candidate", "verified", "canary", "in_office"]
    decided = deps.ledger.release_history(second)[-1].figures
    assert decided["losses"] >= 8
    assert decided["weight"] == decided["ballots"]  # nobody here is known, so everybody counts whole
    assert deps.office.holder == first
    assert second not in deps.engine.adapters()
    pair = deps.ledger.pair(answer.json()["pair_id"])
    assert pair is not None
    assert {side.adapter for side in pair.completions} == {first}
    await manager.close()
