"""The loop, closed, on real parts: engine, broker, ledger, curator, trainer. Each test builds on the one before."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from feedback.contracts import CompletionRecord, PairShown
from feedback.dataset import Dataset
from feedback.ledger import Ledger
from tests.e2e.crowd import Crowd
from tests.e2e.oracle import furthest, logprobs
from tests.e2e.stack import Stack, command, environment
from tests.e2e.traffic import Traffic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_500)]
FIRST, SECOND = "policy-000001", "policy-000002"
ENGINE_TOLERANCE = 2e-3
"""Nats between vLLM and Hugging Face on the same float32 weights; adapters here differ by a hundred times that."""


def ledger_votes(stack: Stack) -> set[str]:
    """Ids of every vote that was acknowledged."""
    ledger = Ledger.open(f"sqlite:///{stack.data_dir / 'ledger.sqlite3'}")
    try:
        return {vote.vote_id for vote in ledger.votes_between()}
    finally:
        ledger.close()


def pairs(stack: Stack, pair_ids: list[str]) -> list[PairShown]:
    ledger = Ledger.open(f"sqlite:///{stack.data_dir / 'ledger.sqlite3'}")
    try:
        found = [ledger.pair(pair_id) for pair_id in pair_ids]
    finally:
        ledger.close()
    assert None not in found, "a pair that was shown is not in the ledger"
    return [pair for pair in found if pair is not None]


def as_sampled(pair: PairShown) -> list[CompletionRecord]:
    """Its answers that are kept token by token: noise from a tiny model may look like somebody's phone number."""
    redacted = [said for said in pair.completions if not said.token_ids]
    assert all(re.search(r"\[[A-Z_]+\]", said.text) for said in redacted), "an answer without its tokens"
    return [said for said in pair.completions if said.token_ids]


def snapshot_votes(stack: Stack) -> list[str]:
    """Vote ids of a snapshot taken now, as often as they stand in it."""
    dataset = Dataset(stack.data_dir / "dataset")
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    return [*snapshot.preferences["vote_id"].to_pylist(), *snapshot.ties["vote_id"].to_pylist()]


def settled(stack: Stack) -> bool:
    """Whether nothing will change who is in office: no cycle runs or is due, and the last adapter has taken it."""
    loop = stack.get("/v1/loop")
    training, votes = loop["training"] or {}, loop["dataset"] or {}  # nothing yet of a trainer that has just begun
    idle = training.get("phase") in {"idle", "failed"} and votes.get("new", math.inf) < votes.get("needed", 0)
    return idle and loop["office"]["adapter"] == stack.published()  # serving hears of it up to a second later


def adapter_folder(stack: Stack, name: str | None) -> Path | None:
    return stack.data_dir / "adapters" / name if name else None


def test_votes_train_an_adapter_that_goes_into_office_under_live_streams(stack: Stack, tiny_model: Path) -> None:
    assert stack.office() is None, "the base is in office at first"
    with Traffic(stack.url) as traffic:
        with Crowd(stack, batch=30, seed=1, until=FIRST):
            stack.until(f"{FIRST} in office", lambda: stack.office() == FIRST, timeout_s=900)
        before = traffic.finished
        stack.until("streams after the swap", lambda: traffic.finished >= before + 6, timeout_s=150)
    assert traffic.failures == [], "no request may fail during a swap"

    seen = pairs(stack, traffic.pair_ids)
    speakers = {completion.adapter for pair in seen for completion in pair.completions}
    assert speakers == {None, FIRST}, "streams ran on both sides of the swap"
    last = [(pair, said) for pair in seen[-40:] for said in as_sampled(pair)]
    assert len(last) > len(seen[-40:]), "most answers are kept as they were sampled"
    for pair, said in last:
        error = furthest(
            tiny_model, adapter_folder(stack, said.adapter), pair.prompt_token_ids, said.token_ids, said.logprobs
        )
        assert error < ENGINE_TOLERANCE, f"{said.adapter} did not say all of this answer: a mixed stream"


def test_what_is_served_is_the_adapter_that_was_trained(stack: Stack, tiny_model: Path) -> None:
    body = {"messages": [{"role": "user", "content": "what do you think?"}], "max_tokens": 24}
    voter = {"X-Hustings-Voter": "the-prober-of-the-served"}
    asked = (stack.post("/v1/pairs", body | {"seed": seed}, **voter).json() for seed in range(5, 25))
    shown = (pairs(stack, [pair["pair_id"]])[0] for pair in asked)
    said = next(pair for pair in shown if len(as_sampled(pair)) == 2)
    for completion in said.completions:
        assert completion.adapter == FIRST
        arguments = (said.prompt_token_ids, completion.token_ids)
        trained = logprobs(tiny_model, adapter_folder(stack, FIRST), *arguments)
        base = logprobs(tiny_model, None, *arguments)
        assert completion.logprobs == pytest.approx(trained, abs=ENGINE_TOLERANCE)
        assert max(abs(a - b) for a, b in zip(trained, base, strict=True)) > 20 * ENGINE_TOLERANCE


def test_the_trained_policy_earns_more_reward_than_the_base(stack: Stack) -> None:
    manifest = json.loads((stack.data_dir / "adapters" / FIRST / "manifest.json").read_text())
    assert manifest["metrics"]["policy_reward"] > manifest["metrics"]["base_reward"]


def test_every_vote_is_in_the_snapshot_exactly_once(stack: Stack) -> None:
    acknowledged = ledger_votes(stack)
    assert len(acknowledged) >= 40
    stack.until("all receipts", lambda: stack.get("/v1/loop")["outbox"]["unconfirmed"] == 0, timeout_s=150)
    assert sorted(snapshot_votes(stack)) == sorted(acknowledged)


def test_killing_any_part_loses_no_vote_and_the_cycle_ends(stack: Stack) -> None:
    voted = len(ledger_votes(stack))
    with Crowd(stack, batch=40, seed=1_000, until=SECOND):
        for verb, more in (("broker", 8), ("curate", 16), ("serve", 24)):
            stack.until(f"{more} more votes", lambda more=more: len(ledger_votes(stack)) >= voted + more, timeout_s=180)
            stack.kill(verb)
        stack.until("the second cycle in PPO", lambda: stack.phase() == "ppo", timeout_s=400)
        stack.kill("train")
        stack.until(f"{SECOND} in office", lambda: (stack.office() or "") >= SECOND, timeout_s=600)

    acknowledged = ledger_votes(stack)
    stack.until("all receipts", lambda: stack.get("/v1/loop")["outbox"]["unconfirmed"] == 0, timeout_s=150)
    assert sorted(snapshot_votes(stack)) == sorted(acknowledged)
    names = [release["name"] for release in stack.get("/v1/releases")["releases"]]
    assert sorted(names) == sorted(set(names)), "an adapter was published twice"


def test_rollback_puts_the_previous_adapter_back(stack: Stack) -> None:
    stack.until("no cycle under way or due", lambda: settled(stack), timeout_s=300)
    office = stack.office()
    assert office is not None
    refused = stack.post("/v1/releases/rollback", {})
    assert refused.status_code == 401
    done = subprocess.run(
        command("releases", "rollback", "--url", stack.url, "--data-dir", str(stack.data_dir)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.office() != office
    answer = httpx.post(
        f"{stack.url}/v1/chat/completions",
        json={"model": "hustings", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
        timeout=60,
    )
    assert answer.status_code == 200


def test_metrics_tell_of_every_part(stack: Stack) -> None:
    text = httpx.get(f"{stack.url}/metrics", timeout=10).text
    for name in ("hustings_votes", "hustings_outbox", "hustings_release", "hustings_time_to_first_token_seconds"):
        assert name in text


def test_ctrl_c_leaves_no_process_behind(stack: Stack) -> None:
    import psutil

    everyone = psutil.Process(stack.process.pid).children(recursive=True)
    assert len(everyone) >= 4
    status = stack.stop()
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert alive == []
    assert status == 0
