"""Forgetting and lineage over HTTP: the operator's alone."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from feedback import manifests
from feedback.contracts import AdapterManifest
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.deps import ServeDeps
from tests.serve.adapters import publish
from tests.serve.conftest import TOKEN, client_of

ASK = {"messages": [{"role": "user", "content": "Hello?"}]}


async def test_an_operator_forgets_a_voter_and_nobody_else_may(
    app: FastAPI, client: httpx.AsyncClient, ledger: Ledger
) -> None:
    pair_id = (await client.post("/v1/pairs", json=ASK)).json()["pair_id"]
    await client.post("/v1/votes", json={"pair_id": pair_id, "choice": "a"})
    shown = ledger.pair(pair_id)
    assert shown is not None
    refused = await client.post("/v1/voters/forget", json={"voter": shown.voter})
    assert refused.status_code == 401
    assert ledger.counts().votes == 1
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        body = (await operator.post("/v1/voters/forget", json={"voter": shown.voter})).json()
        assert (body["pairs"], body["votes"], body["adapters"]) == (1, 1, [])
        assert (await operator.post("/v1/voters/forget", json={"voter": "Ann"})).status_code == 422
    assert ledger.counts().votes == 0


async def test_nobody_of_that_name_is_404_and_forgetting_twice_is_not(
    app: FastAPI, client: httpx.AsyncClient, ledger: Ledger
) -> None:
    shown = ledger.pair((await client.post("/v1/pairs", json=ASK)).json()["pair_id"])
    assert shown is not None
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        unknown = await operator.post("/v1/voters/forget", json={"voter": "v_nobody"})
        assert unknown.status_code == 404
        assert "v_nobody was found" in unknown.json()["detail"]
        assert [event.voter for event in ledger.forgotten()] == ["v_nobody"]
        told = [(await operator.post("/v1/voters/forget", json={"voter": shown.voter})).json() for _ in range(2)]
        assert [one["outcome"] for one in told] == ["forgotten", "already_forgotten"]


async def test_an_unreadable_manifest_is_named_counted_and_logged(
    app: FastAPI, deps: ServeDeps, paths: DataPaths
) -> None:
    publish(paths.adapters, 1)
    publish(paths.adapters, 2, parent="policy-000001")
    (paths.adapters / "policy-000001" / "manifest.json").write_text("{")
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        with capture_logs() as logs:
            answers = [await operator.get("/v1/lineage/policy-000002") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert set(answers[0].json()["unreadable"]) == {"policy-000001"}
        missing = await operator.get("/v1/lineage/policy-000001")
        assert (missing.status_code, "EOF while parsing" in missing.json()["detail"]) == (404, True)
    assert [line["adapter"] for line in logs if line["event"] == "manifest unreadable"] == ["policy-000001"]
    assert deps.metrics.registry.get_sample_value("hustings_manifests_unreadable") == 1


async def test_a_damaged_tombstone_is_told_of(app: FastAPI, paths: DataPaths) -> None:
    """It is what keeps somebody out of everything: nothing goes on without it, and a person hears why."""
    (paths.dataset / "forgotten").mkdir(parents=True)
    (paths.dataset / "forgotten" / "v_ann.json").write_text("{")
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        answer = await operator.get("/v1/lineage/policy-000001")
    assert answer.status_code == 503
    assert "v_ann.json can't be read" in answer.json()["detail"]


async def test_lineage_is_told_and_the_unknown_is_404(app: FastAPI, paths: DataPaths) -> None:
    publish(paths.adapters, 1)
    async with client_of(app) as anybody:
        assert (await anybody.get("/v1/lineage/policy-000001")).status_code == 401
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        body = (await operator.get("/v1/lineage/policy-000001")).json()
        assert (body["reward_model"], body["snapshot"], body["forgotten"]) == ("rm-1", "s-1", [])
        missing = await operator.get("/v1/lineage/vote_none")
        assert missing.status_code == 404
        assert "vote_none" in missing.json()["detail"]


async def test_manifests_are_not_read_at_every_request(
    app: FastAPI, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(paths.adapters, 1)
    publish(paths.adapters, 2, parent="policy-000001")
    reads: list[str] = []
    real = manifests.read_manifest

    def read_manifest(path: Path) -> AdapterManifest:
        reads.append(path.parent.name)
        return real(path)

    monkeypatch.setattr(manifests, "read_manifest", read_manifest)
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        for _ in range(3):
            assert (await operator.get("/v1/lineage/policy-000002")).json()["ancestors"] == ["policy-000001"]
        assert reads == ["policy-000001", "policy-000002"]
        publish(paths.adapters, 3)
        await operator.get("/v1/lineage/policy-000003")
    assert reads[2:] == ["policy-000003"]


async def test_an_id_that_no_database_could_hold_is_refused(app: FastAPI) -> None:
    async with client_of(app, Authorization=f"Bearer {TOKEN}") as operator:
        assert (await operator.get("/v1/lineage/a%00b")).status_code == 422
