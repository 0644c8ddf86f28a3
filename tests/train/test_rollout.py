"""Rollouts through serving: hand-over and take-back of the policy, retries, refusals."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from train.errors import RolloutsUnavailable
from train.rollout import Sample, ServingRollouts, run_of

PROMPTS = [(1, 2), (3,), (4, 5, 6)]


class Serving:
    """Answers like serving, and writes down what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.seeds: list[int] = []
        self.digests: list[str] = []
        self.faults: list[Callable[[], httpx.Response]] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        assert request.headers["authorization"] == "Bearer secret"
        if self.faults:
            return self.faults.pop(0)()
        if request.method == "PUT":
            self.digests.append(json.loads(request.content)["digest"])
            assert (self.folder / request.url.path.rpartition("/")[2] / "adapter_model.safetensors").exists()
        if request.method != "POST":
            return httpx.Response(200)
        body = json.loads(request.content)
        self.seeds.append(body["seed"])
        self.digests.append(body["digest"])
        one = {"token_ids": [7, 2], "logprobs": [-0.5, -0.25], "finish_reason": "stop"}
        return httpx.Response(200, json={"completions": [[one] * body["n"] for _ in body["prompts"]]})

    def rollouts(self) -> ServingRollouts:
        def save(folder: Path) -> None:
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text("{}")
            (folder / "adapter_model.safetensors").write_bytes(b"x")

        return ServingRollouts(
            "http://serving/",
            "secret",
            self.folder,
            save,
            run="c7",
            attempts=3,
            prompts_per_request=2,
            client=httpx.Client(transport=httpx.MockTransport(self)),
            sleep=self.waits.append,
        )


def generate(rollouts: ServingRollouts, n: int = 2) -> list[Sample]:
    return rollouts.generate(PROMPTS, n, max_tokens=4, temperature=1.0, seed=100)


def test_the_policy_is_handed_over_under_a_new_name_each_time_and_taken_back(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    rollouts = serving.rollouts()
    samples = generate(rollouts)
    generate(rollouts)
    adapter = "/v1/rollout-adapters/rollout-c7-"
    turn = ["PUT", "POST", "POST", "DELETE"]
    assert [method for method, _ in serving.asked] == turn * 2
    assert serving.asked[0] == ("PUT", f"{adapter}0")
    assert serving.asked[-1] == ("DELETE", f"{adapter}1")
    assert list(tmp_path.iterdir()) == []
    assert [sample.prompt_ids for sample in samples] == [p for p in PROMPTS for _ in range(2)]
    assert samples[0] == Sample((1, 2), (7, 2), (-0.5, -0.25), "stop")


def test_every_prompt_has_a_seed_of_its_own_however_requests_are_cut(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    generate(serving.rollouts(), n=4)
    # serving draws the i-th prompt of a request with seed + i * n: 100, 104 | 108
    assert serving.seeds == [100, 108]


def test_each_request_tells_which_adapter_is_meant_for_any_serving_may_get_it(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    generate(serving.rollouts())
    weights, config = b"x", b"{}"
    lengths = [len(content).to_bytes(8, "big") for content in (config, weights)]
    meant = hashlib.sha256(lengths[0] + config + lengths[1] + weights).hexdigest()
    assert serving.digests == [meant] * 3


def test_a_serving_that_does_not_see_the_folder_yet_is_asked_again(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    serving.faults = [lambda: httpx.Response(404, text="no folder")] * 2
    assert len(generate(serving.rollouts())) == 6


def test_a_trainer_that_is_started_again_in_the_same_cycle_uses_other_names() -> None:
    runs = {run_of("000007") for _ in range(8)}
    assert len(runs) == 8
    assert all(re.fullmatch(r"000007-[0-9a-f]{8}", run) for run in runs)


def test_a_busy_or_vanished_serving_is_asked_again(tmp_path: Path) -> None:
    def vanished() -> httpx.Response:
        raise httpx.ConnectError("refused")

    serving = Serving(tmp_path)
    serving.faults = [vanished, lambda: httpx.Response(429, headers={"retry-after": "7"})]
    assert len(generate(serving.rollouts())) == 6
    assert 7.0 in serving.waits


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (503, 3)])
def test_a_refusal_ends_at_once_and_an_outage_after_all_attempts(tmp_path: Path, status: int, tries: int) -> None:
    serving = Serving(tmp_path)
    serving.faults = [lambda: httpx.Response(status, text="no")] * tries
    with pytest.raises(RolloutsUnavailable, match=str(status)):
        generate(serving.rollouts())
    assert [method for method, _ in serving.asked] == ["PUT"] * tries + ["DELETE"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "completion",
    [
        {"token_ids": [], "logprobs": [], "finish_reason": "stop"},
        {"token_ids": [1], "logprobs": [-1.0], "finish_reason": "abort"},
        {"token_ids": [1, 2], "logprobs": [-1.0], "finish_reason": "stop"},
    ],
)
def test_an_unusable_answer_is_an_error(tmp_path: Path, completion: dict[str, object]) -> None:
    serving = Serving(tmp_path)
    answer = httpx.Response(200, json={"completions": [[completion] * 2] * 2})
    serving.faults = [lambda: httpx.Response(200), lambda: answer]
    with pytest.raises(RolloutsUnavailable, match="unusable"):
        generate(serving.rollouts())
