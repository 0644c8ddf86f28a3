from __future__ import annotations

import asyncio
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.fingerprint import adapter_digest
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve import rollout_adapters
from serve.app import ServeDeps, create_app
from serve.config import ServeConfig
from serve.engines.base import NoRoomForAdapter, Priority
from serve.rollout_adapters import RolloutAdapters
from tests.fakes.engine import FakeEngine
from tests.serve.adapters import safetensors
from tests.serve.conftest import TOKEN, client_of, ready_deps

NAME = "rollout-c1-0"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
ASK: dict[str, Any] = {"adapter": None, "prompts": [[1, 2, 3], [4, 5]], "n": 2, "max_tokens": 6, "seed": 10}


def save(root: Path, name: str = NAME) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(1))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    return folder


async def test_rollouts_bring_the_samplers_ids_and_logprobs_for_each_prompt(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await client.post("/v1/rollouts", json=ASK, headers=OPERATOR)
    assert answer.status_code == 200
    completions = answer.json()["completions"]
    assert [len(answers) for answers in completions] == [2, 2]
    for answers in completions:
        for one in answers:
            assert len(one["token_ids"]) == len(one["logprobs"]) == 6
            assert one["finish_reason"] == "length"
    assert [r.prompt_token_ids for r in engine.requests] == [(1, 2, 3), (4, 5)]
    assert {r.priority for r in engine.requests} == {Priority.ROLLOUT}
    assert [r.sampling.seed for r in engine.requests] == [10, 12]


async def test_a_rollout_adapter_is_loaded_used_and_unloaded(
    client: httpx.AsyncClient, engine: FakeEngine, paths: DataPaths
) -> None:
    save(paths.rollout_adapters)
    path = f"/v1/rollout-adapters/{NAME}"
    assert (await client.put(path, headers=OPERATOR)).status_code == 201
    assert (await client.put(path, headers=OPERATOR)).status_code == 200
    assert (await client.post("/v1/rollouts", json=ASK | {"adapter": NAME}, headers=OPERATOR)).status_code == 200
    assert {r.adapter for r in engine.requests} == {NAME}
    assert (await client.delete(path, headers=OPERATOR)).status_code == 204
    assert (await client.delete(path, headers=OPERATOR)).status_code == 204
    assert engine.adapters() == frozenset()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_behind_a_load_balancer_each_serving_loads_what_it_is_asked_for(
    client: httpx.AsyncClient, ledger: Ledger, paths: DataPaths
) -> None:
    """The one was told to load, another was asked to sample, and answered 404: the cycle ended."""
    digest = adapter_digest(save(paths.rollout_adapters))
    other = FakeEngine()
    await other.start()
    path, ask = f"/v1/rollout-adapters/{NAME}", ASK | {"adapter": NAME, "digest": digest}
    assert (await client.put(path, headers=OPERATOR, json={"digest": digest})).status_code == 201
    async with client_of(create_app(ready_deps(other, ledger, paths, ServeConfig()))) as second:
        first_use, again = [
            await asyncio.gather(*(second.post("/v1/rollouts", json=ask, headers=OPERATOR) for _ in range(2)))
            for _ in range(2)
        ]
    assert [answer.status_code for answer in [*first_use, *again]] == [200] * 4
    assert other.adapters() == {NAME}


@pytest.mark.parametrize("loaded_before", [False, True])
async def test_another_adapter_under_the_name_that_is_meant_is_refused(
    client: httpx.AsyncClient, paths: DataPaths, engine: FakeEngine, loaded_before: bool
) -> None:
    save(paths.rollout_adapters)
    if loaded_before:
        await client.put(f"/v1/rollout-adapters/{NAME}", headers=OPERATOR)
    answer = await client.post("/v1/rollouts", json=ASK | {"adapter": NAME, "digest": "0" * 64}, headers=OPERATOR)
    assert answer.status_code == 409
    assert "another adapter here than the trainer has saved" in answer.json()["detail"]
    assert engine.requests == []
    assert (NAME in engine.adapters()) is loaded_before


async def test_a_serving_without_the_trainers_folder_names_what_to_set(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/rollouts", json=ASK | {"adapter": NAME}, headers=OPERATOR)
    assert answer.status_code == 404
    assert "`data_dir`" in answer.json()["detail"]
    assert 'train.rollout.source = "local"' in answer.json()["detail"]


@pytest.mark.parametrize("name", ["rollout-a\n", "rollout-../../x", "rollout-a/../../x", "rollout-", "rollout-A"])
async def test_no_name_in_a_request_leads_out_of_the_folder(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/v1/rollouts", json=ASK | {"adapter": name}, headers=OPERATOR)
    assert answer.status_code == 400


async def test_a_published_adapter_is_not_loaded_by_being_asked_for(
    client: httpx.AsyncClient, paths: DataPaths
) -> None:
    save(paths.rollout_adapters, "policy-000001")
    save(paths.adapters, "policy-000001")
    answer = await client.post("/v1/rollouts", json=ASK | {"adapter": "policy-000001"}, headers=OPERATOR)
    assert answer.status_code == 404


async def test_what_a_killed_trainer_left_is_freed_and_what_a_slow_one_uses_is_not(
    deps: ServeDeps, engine: FakeEngine, paths: DataPaths
) -> None:
    clock = Clock()
    adapters = RolloutAdapters(deps, clock)
    for name in ("rollout-left", "rollout-slow", "rollout-used"):
        save(paths.rollout_adapters, name)
        await adapters.load(name)
    clock.now = 899.0
    async with adapters.borrow("rollout-slow", None):
        pass
    async with adapters.borrow("rollout-used", None):
        clock.now = 900.0
        await adapters.free_idle()
        assert engine.adapters() == {"rollout-slow", "rollout-used"}
        clock.now = 5000.0
        await adapters.free_idle()
        assert engine.adapters() == {"rollout-used"}
    await adapters.free_idle()
    assert engine.adapters() == {"rollout-used"}, "its time begins when it is given back"
    async with adapters.borrow("rollout-slow", None):
        assert "rollout-slow" in engine.adapters(), "a trainer that was only slow gets it again"


async def test_an_adapter_whose_trainer_has_taken_the_folder_away_is_freed_at_the_next_look(
    deps: ServeDeps, engine: FakeEngine, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DELETE went to another serving, or the trainer was started again and has cleared its folder."""
    monkeypatch.setattr(rollout_adapters, "LOOK_S", 0.0)
    engine._usable.add("policy-000001")
    adapters = RolloutAdapters(deps)
    folder = save(paths.rollout_adapters)
    await adapters.load(NAME)
    watch = asyncio.create_task(adapters.watch())
    async with adapters.borrow(NAME, None):
        shutil.rmtree(folder)
        await adapters.free_idle()
        assert NAME in engine.adapters()
    async with asyncio.timeout(10):
        while NAME in engine.adapters():
            await asyncio.sleep(0)
    assert engine.adapters() == {"policy-000001"}
    watch.cancel()


async def test_a_shared_folder_that_is_out_of_reach_takes_no_adapter_away(
    deps: ServeDeps, engine: FakeEngine, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = RolloutAdapters(deps)
    save(paths.rollout_adapters)
    await adapters.load(NAME)

    def stale(folder: Path, **_: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stale)
    await adapters.free_idle()
    assert engine.adapters() == {NAME}


async def test_a_trainer_that_was_started_again_finds_room(ledger: Ledger, paths: DataPaths) -> None:
    engine = FakeEngine(max_adapters=1)
    await engine.start()
    adapters = RolloutAdapters(ready_deps(engine, ledger, paths, ServeConfig()))
    folder = save(paths.rollout_adapters, "rollout-killed")
    await adapters.load("rollout-killed")
    save(paths.rollout_adapters)
    with pytest.raises(NoRoomForAdapter):
        await adapters.load(NAME)
    shutil.rmtree(folder)
    assert await adapters.load(NAME)
    assert engine.adapters() == {NAME}


async def test_an_adapter_is_freed_after_its_last_request_and_holds_nobody_up_meanwhile(
    deps: ServeDeps, engine: FakeEngine, paths: DataPaths
) -> None:
    adapters = RolloutAdapters(deps)
    save(paths.rollout_adapters)
    save(paths.rollout_adapters, "rollout-other")
    async with adapters.borrow(NAME, None):
        unload = asyncio.create_task(adapters.unload(NAME))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await adapters.load("rollout-other")
        assert NAME in engine.adapters()
        assert not unload.done()
    await unload
    assert engine.adapters() == {"rollout-other"}


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/rollouts"), ("PUT", f"/v1/rollout-adapters/{NAME}")])
async def test_only_the_operator_may(client: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await client.request(method, path, json=ASK)).status_code == 401


@pytest.mark.parametrize(
    "name", ["policy-000001", "rollout-", "rollout-A", "rollout-..%2f..%2fx", "rollout-" + "a" * 41]
)
async def test_no_other_names_are_taken(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.put(f"/v1/rollout-adapters/{name}", headers=OPERATOR)).status_code in {404, 422}


async def test_a_folder_with_anything_that_could_run_code_is_refused(
    client: httpx.AsyncClient, paths: DataPaths
) -> None:
    (save(paths.rollout_adapters) / "adapter_model.bin").write_bytes(b"\x80")
    answer = await client.put(f"/v1/rollout-adapters/{NAME}", headers=OPERATOR)
    assert answer.status_code == 400
    assert "adapter_model.bin" in answer.json()["detail"]


async def test_a_symlink_is_no_folder_of_ours(client: httpx.AsyncClient, paths: DataPaths, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere")
    (paths.rollout_adapters / NAME).symlink_to(tmp_path / "elsewhere" / NAME)
    assert (await client.put(f"/v1/rollout-adapters/{NAME}", headers=OPERATOR)).status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": []},
        {"prompts": [[]]},
        {"prompts": [[-1]]},
        {"prompts": [["a"]]},
        {"n": 0},
        {"max_tokens": 0},
        {"temperature": 3},
        {"more": 1},
    ],
)
async def test_bad_rollouts_are_refused(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    assert (await client.post("/v1/rollouts", json=ASK | change, headers=OPERATOR)).status_code == 422


async def test_a_prompt_that_does_not_fit_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/rollouts", json=ASK | {"prompts": [[1] * 2048]}, headers=OPERATOR)
    assert answer.status_code == 400


async def test_an_engine_failure_is_an_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 2
    assert (await client.post("/v1/rollouts", json=ASK, headers=OPERATOR)).status_code == 503
