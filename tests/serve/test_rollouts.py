from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.paths import DataPaths
from serve.engines.base import Priority
from tests.fakes.engine import FakeEngine
from tests.serve.adapters import safetensors
from tests.serve.conftest import TOKEN

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
    assert (await client.post("/v1/rollouts", json=ASK | {"adapter": NAME}, headers=OPERATOR)).status_code == 404
    assert (await client.put(path, headers=OPERATOR)).status_code == 201
    assert (await client.put(path, headers=OPERATOR)).status_code == 200
    assert (await client.post("/v1/rollouts", json=ASK | {"adapter": NAME}, headers=OPERATOR)).status_code == 200
    assert {r.adapter for r in engine.requests} == {NAME}
    assert (await client.delete(path, headers=OPERATOR)).status_code == 204
    assert (await client.delete(path, headers=OPERATOR)).status_code == 204
    assert engine.adapters() == frozenset()


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
