"""Several servings on one ledger: what is wrong with one of them decides nothing for the others."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import create_app
from serve.config import ServeConfig
from serve.deps import ServeDeps
from serve.releases.errors import NotHere
from serve.releases.manager import ReleaseManager
from tests.fakes.engine import FakeEngine
from tests.serve.adapters import FINGERPRINT, publish
from tests.serve.conftest import TOKEN, client_of, ready_deps

ONE, TWO, THREE = "policy-000001", "policy-000002", "policy-000003"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def _on_a_database_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "shared", True)


def states(ledger: Ledger) -> dict[str, str]:
    return {release.name: release.state.value for release in ledger.releases()}


Serving = Callable[..., Awaitable[tuple[ReleaseManager, ServeDeps]]]


@pytest.fixture
async def serving(ledger: Ledger, paths: DataPaths) -> AsyncIterator[Serving]:
    """Starts another serving: an engine of its own, the same ledger; the same folder unless told otherwise."""
    running: list[ReleaseManager] = []

    async def start(
        folder: DataPaths = paths, fingerprint: str = FINGERPRINT, **releases: Any
    ) -> tuple[ReleaseManager, ServeDeps]:
        engine = FakeEngine()
        await engine.start()
        config = ServeConfig(releases={"retry_s": 0.01, **releases})
        deps = ready_deps(engine, ledger, folder, config, base_fingerprint=lambda: fingerprint)
        manager = create_app(deps).state.releases
        await manager.start()
        running.append(manager)
        await manager.settled()
        return manager, deps

    yield start
    for manager in running:
        await manager.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> DataPaths:
    """A data folder whose volume isn't mounted."""
    made = DataPaths(tmp_path / "elsewhere")
    made.create()
    return made


async def elect(serving: Serving, paths: DataPaths, *numbers: int) -> tuple[ReleaseManager, ServeDeps]:
    manager, deps = await serving()
    for number in numbers:
        manager.hear(publish(paths.adapters, number))
        await settle(manager)
        assert deps.office.holder == f"policy-{number:06d}"
    return manager, deps


async def settle(manager: ReleaseManager) -> None:
    """Everything that the manager was told of has arrived and is dealt with."""
    await asyncio.sleep(0)
    await manager.settled()


async def test_one_that_starts_without_the_folder_takes_nobody_out_of_office(
    serving: Serving, ledger: Ledger, paths: DataPaths, elsewhere: DataPaths
) -> None:
    """It rejected the office-holder, and all before it, for every serving: the base answered everywhere."""
    good, good_deps = await elect(serving, paths, 1, 2)
    lost, lost_deps = await serving(elsewhere)
    assert states(ledger) == {ONE: "retired", TWO: "in_office"}
    assert "there is no adapter folder policy-000002" in (lost_deps.readiness.reason or "")
    await good.keep_up()
    assert good_deps.office.holder == TWO
    shutil.copytree(paths.adapters, elsewhere.adapters, dirs_exist_ok=True)
    await lost.keep_up()
    assert (lost_deps.office.holder, lost_deps.readiness.reason) == (TWO, None)


async def test_one_with_another_model_takes_nobody_out_of_office(
    serving: Serving, ledger: Ledger, paths: DataPaths
) -> None:
    await elect(serving, paths, 1)
    _, other_deps = await serving(fingerprint="e" * 64)
    assert states(ledger) == {ONE: "in_office"}
    assert "trained on another base" in (other_deps.readiness.reason or "")


async def test_one_without_the_folder_rejects_no_candidate_and_no_canary(
    serving: Serving, ledger: Ledger, paths: DataPaths, elsewhere: DataPaths
) -> None:
    lost, lost_deps = await serving(elsewhere, gate="votes")
    event = publish(paths.adapters, 1)
    lost.hear(event)
    await settle(lost)
    with pytest.raises(NotHere):
        await lost.keep_up()
    assert states(ledger) == {ONE: "candidate"}
    good, good_deps = await serving(gate="votes")
    await good.keep_up()
    assert good_deps.office.canaries == (ONE,)
    with pytest.raises(NotHere):
        await lost.keep_up()
    assert states(ledger) == {ONE: "canary"}
    assert lost_deps.office.canaries == ()


async def test_an_operator_gets_a_serving_that_lost_everything_going_again(
    serving: Serving, ledger: Ledger, paths: DataPaths, elsewhere: DataPaths
) -> None:
    """Two was in office and is gone for good; One can be had and takes over."""
    manager, _ = await elect(serving, paths, 1, 2)
    await manager.close()
    shutil.copytree(paths.adapters / ONE, elsewhere.adapters / ONE)
    lost, lost_deps = await serving(elsewhere)
    app = create_app(lost_deps)
    app.state.releases = lost
    async with client_of(app) as client:
        ask = {"messages": [{"role": "user", "content": "Hello?"}]}
        assert (await client.post("/v1/pairs", json=ask)).status_code == 503
        answer = await client.post(f"/v1/releases/{TWO}/reject", headers=OPERATOR, json={"reason": "its disk died"})
        assert (answer.status_code, answer.json()) == (200, {"office": ONE})
        assert (await client.post("/v1/pairs", json=ask)).status_code == 200
    assert states(ledger) == {ONE: "in_office", TWO: "rejected"}


async def test_of_two_servings_that_admit_different_adapters_at_once_one_does(
    serving: Serving, ledger: Ledger, paths: DataPaths
) -> None:
    """Both began with the base in office; the second would have put another one beside the first."""
    one, _ = await serving()
    two, two_deps = await serving()
    one.hear(publish(paths.adapters, 1))
    await settle(one)
    assert states(ledger) == {ONE: "in_office"}
    two.hear(publish(paths.adapters, 2))
    await settle(two)
    assert sorted(states(ledger).values()).count("in_office") == 1
    await two.keep_up()
    two.look()
    await settle(two)
    assert states(ledger) == {ONE: "retired", TWO: "in_office"}
    assert two_deps.office.holder == TWO
