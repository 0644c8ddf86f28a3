"""Who is taken out of the engine meets nobody any more, and who is to be met is loaded: no pair finds nobody there."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from feedback.contracts import Message
from feedback.ledger import Ledger, LedgerUnavailable
from feedback.paths import DataPaths
from serve.app import ServeDeps
from serve.config import ServeConfig
from serve.engines.base import AdapterNotLoaded, EngineUnavailable
from serve.pairs import PairAsk, PairDone, run_pair
from serve.releases.manager import ReleaseManager
from tests.fakes.engine import FakeEngine
from tests.serve.adapters import publish
from tests.serve.conftest import MakeDeps, ready_deps

ONE, TWO, THREE = "policy-000001", "policy-000002", "policy-000003"
VOTES: dict[str, Any] = {"gate": "votes", "canary": {"look_s": 60.0}}
"""Nothing looks unless it is stirred."""


@asynccontextmanager
async def managed(deps: ServeDeps) -> AsyncIterator[ReleaseManager]:
    manager = ReleaseManager(deps)
    await manager.start()
    await manager.settled()
    yield manager
    await manager.close()


async def nominate(manager: ReleaseManager, paths: DataPaths, number: int) -> None:
    """Publish an adapter and let it become the canary."""
    manager.hear(publish(paths.adapters, number))
    await asyncio.sleep(0)
    await manager.settled()
    await manager.keep_up()


async def two_in_office(manager: ReleaseManager, paths: DataPaths) -> None:
    """The second holds office and is watched: it meets the first."""
    for number, name in ((1, ONE), (2, TWO)):
        await nominate(manager, paths, number)
        await manager.promote(name, "by hand")
    await manager.keep_up()


async def speakers(deps: ServeDeps) -> set[str | None]:
    """Who answers a pair that somebody asks for now."""
    ask = PairAsk((Message(role="user", content="Well?"),))
    async for event in run_pair(deps, ask, "v_somebody"):
        if isinstance(event, PairDone):
            return {side.adapter for side in event.pair.completions}
    raise AssertionError("a pair ended without its last event")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)  # the unloading is a task of its own, which nobody can await


async def test_a_rejected_predecessor_meets_nobody_from_then_on(
    make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine
) -> None:
    deps = make_deps(releases=VOTES, contenders={"watch_share": 1.0})
    async with managed(deps) as manager:
        await two_in_office(manager, paths)
        assert await speakers(deps) == {ONE, TWO}
        await manager.reject(ONE, "no good")
        assert deps.office.predecessors == ()
        await until(lambda: ONE not in engine.adapters())
        assert await speakers(deps) == {TWO}


async def test_a_predecessor_that_makes_room_for_a_candidate_meets_nobody_meanwhile(
    make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps = make_deps(releases=VOTES, max_loras=2, contenders={"watch_share": 1.0, "candidate_share": 0.0})
    async with managed(deps) as manager:
        await two_in_office(manager, paths)
        assert await speakers(deps) == {ONE, TWO}
        met: list[set[str | None]] = []
        load = engine.load_adapter

        async def loading(*given: Any) -> None:
            met.append(await speakers(deps))
            await load(*given)

        monkeypatch.setattr(engine, "load_adapter", loading)
        await nominate(manager, paths, 3)
        assert engine.adapters() == {TWO, THREE}
        assert met == [{TWO}]


async def test_a_canary_that_its_engine_has_lost_meets_nobody_until_it_is_back(
    make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps = make_deps(releases=VOTES, contenders={"candidate_share": 1.0})
    async with managed(deps) as manager:
        await nominate(manager, paths, 1)
        assert await speakers(deps) == {ONE, None}
        await engine.unload_adapter(ONE)

        async def away(*_: Any) -> None:
            raise EngineUnavailable("the server is away")

        with monkeypatch.context() as broken:
            broken.setattr(engine, "load_adapter", away)
            with pytest.raises(EngineUnavailable):
                await manager.keep_up()
        assert await speakers(deps) == {None}
        await manager.keep_up()
        assert await speakers(deps) == {ONE, None}


async def test_an_adapter_that_isnt_there_has_not_failed(
    make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine
) -> None:
    """The guard `errors` would keep a candidate out of office for what its servers have done."""
    deps = make_deps(releases=VOTES, contenders={"candidate_share": 1.0})
    async with managed(deps) as manager:
        await nominate(manager, paths, 1)
        await engine.unload_adapter(ONE)
        with pytest.raises(AdapterNotLoaded):
            await speakers(deps)
        assert deps.office.failures(ONE) == (0, 0)


async def restarted(ledger: Ledger, paths: DataPaths, **config: Any) -> ServeDeps:
    """Another process on the same ledger and folders."""
    engine = FakeEngine()
    await engine.start()
    given = {"releases": VOTES, "contenders": {"watch_share": 1.0}, **config}
    return ready_deps(engine, ledger, paths, ServeConfig.model_validate(given))


async def test_an_office_holder_is_watched_on_after_a_restart(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    async with managed(make_deps(releases=VOTES)) as manager:
        await two_in_office(manager, paths)
    deps = await restarted(ledger, paths)
    async with managed(deps) as manager:
        await manager.keep_up()
        assert await speakers(deps) == {ONE, TWO}


async def test_the_predecessor_is_not_called_back_into_the_trainers_place(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    async with managed(make_deps(releases=VOTES)) as manager:
        await two_in_office(manager, paths)
    deps = await restarted(ledger, paths, max_loras=2)
    async with managed(deps) as manager:
        await manager.keep_up()
        assert deps.engine.adapters() == {TWO}
        assert await speakers(deps) == {TWO}


async def test_a_predecessor_that_cant_be_had_holds_no_election_up(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with managed(make_deps(releases=VOTES)) as manager:
        await two_in_office(manager, paths)
    shutil.rmtree(paths.adapters / ONE)
    deps = await restarted(ledger, paths)
    async with managed(deps) as manager:
        with capture_logs() as logs:
            await nominate(manager, paths, 3)
            await manager.keep_up()
        assert deps.office.canaries == (THREE,)
        told = [line for line in logs if line["event"] == "the office-holder can't be watched"]
        assert [line["predecessor"] for line in told] == [ONE]  # tried once, not at each look
        monkeypatch.setattr("serve.releases.election.time.monotonic", lambda clock=time.monotonic: clock() + 61)
        with capture_logs() as logs:
            await manager.keep_up()
        assert "the office-holder can't be watched" in [line["event"] for line in logs]


@pytest.mark.parametrize("trouble", [EngineUnavailable("away"), LedgerUnavailable("away")])
async def test_an_adapter_that_could_not_be_unloaded_is_tried_again(
    make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """It kept its place in the engine until the next change of office."""
    deps = make_deps(releases=VOTES | {"retry_s": 0.01})
    async with managed(deps) as manager:
        await two_in_office(manager, paths)
        unload, tried = engine.unload_adapter, list[str]()

        async def unloading(name: str) -> None:
            tried.append(name)
            if len(tried) == 1:
                raise trouble
            await unload(name)

        monkeypatch.setattr(engine, "unload_adapter", unloading)
        await manager.reject(ONE, "no good")
        await until(lambda: len(tried) == 2)
        await until(lambda: ONE not in engine.adapters())
