from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from feedback.contracts import (
    ADAPTER_TOPIC,
    AdapterPublished,
    ProbeRecord,
    ReleaseChanged,
    ReleaseState,
)
from feedback.event_log import OutgoingRecord
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import ServeDeps, create_app
from serve.config import ReleasesConfig
from serve.engines.base import AdapterLoadFailed, EngineOverloaded, NoRoomForAdapter
from serve.releases.errors import ProbeFailed, VerificationFailed
from serve.releases.follower import ReleaseFollower
from serve.releases.history import office_stack
from serve.releases.manager import ReleaseManager
from serve.releases.probe import ProbeReport, judge
from serve.releases.store import AdapterStore
from tests.fakes.engine import FakeEngine
from tests.fakes.event_log import FakeEventLog
from tests.serve.adapters import FINGERPRINT, probe_of, publish, safetensors
from tests.serve.conftest import TOKEN, MakeDeps, client_of

ONE, TWO, THREE = "policy-000001", "policy-000002", "policy-000003"
ASK: Any = {"model": "hustings", "messages": [{"role": "user", "content": "Hello?"}]}
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def manager(deps: ServeDeps) -> AsyncIterator[ReleaseManager]:
    made = ReleaseManager(deps)
    await made.start()
    await made.settled()
    yield made
    await made.close()


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


def states(ledger: Ledger) -> dict[str, str]:
    return {release.name: release.state.value for release in ledger.releases()}


def reason(ledger: Ledger, name: str) -> str:
    release = ledger.release(name)
    assert release is not None
    return release.reason


async def test_an_announced_adapter_is_verified_probed_and_put_into_office(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: deps.office.holder == ONE)
    assert [(c.before, c.after) for c in ledger.release_history(ONE)] == [
        (None, ReleaseState.CANDIDATE),
        (ReleaseState.CANDIDATE, ReleaseState.VERIFIED),
        (ReleaseState.VERIFIED, ReleaseState.IN_OFFICE),
    ]
    assert ledger.office() == ONE
    assert ledger.release(ONE).manifest.metrics == {"reward": 0.5}  # type: ignore[union-attr]
    assert ONE in engine.adapters()


async def test_the_successor_takes_over_and_the_one_before_stays_loaded_for_a_rollback(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    for number, name in ((1, ONE), (2, TWO), (3, THREE)):
        manager.hear(publish(paths.adapters, number))
        await eventually(lambda name=name: deps.office.holder == name)  # type: ignore[misc]
    await eventually(lambda: engine.adapters() == {TWO, THREE})
    assert states(ledger) == {ONE: "retired", TWO: "retired", THREE: "in_office"}
    assert await manager.rollback("worse") == TWO
    assert deps.office.holder == TWO
    assert states(ledger) == {ONE: "retired", TWO: "in_office", THREE: "retired"}
    assert await manager.rollback("worse") == ONE
    assert await manager.rollback("worse") is None
    assert deps.office.holder is None
    assert ledger.office() is None


async def test_a_doubled_announcement_changes_nothing(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    event = publish(paths.adapters, 1)
    for _ in range(3):
        manager.hear(event)
    manager.look()
    await eventually(lambda: deps.office.holder == ONE and manager._inbox.empty())
    manager.hear(publish(paths.adapters, 2))
    await eventually(lambda: deps.office.holder == TWO)
    assert len(ledger.release_history(ONE)) == 4


async def test_requests_in_flight_end_on_their_adapter_and_it_is_unloaded_after_them(
    make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine
) -> None:
    deps = make_deps(releases={"keep_previous": False})
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: deps.office.holder == ONE)
    engine.gate.clear()
    async with client_of(app) as client:
        slow = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
        await eventually(lambda: bool(engine.started))
        manager.hear(publish(paths.adapters, 2))
        await eventually(lambda: deps.office.holder == TWO)
        await asyncio.sleep(0)
        assert ONE in engine.adapters()
        engine.gate.set()
        assert (await slow).status_code == 200
        await eventually(lambda: ONE not in engine.adapters())
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200
    assert [request.adapter for request in engine.requests] == [ONE, TWO]
    assert engine.aborted == []
    await manager.close()


def other_probe(number: int) -> ProbeRecord:
    """A probe of other weights than the adapter's own."""
    return probe_of(safetensors(number + 100))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"base_fingerprint": "e" * 64}, "another base"),
        ({"lora_rank": 65}, "rank"),
        ({"lora_rank": 8}, "rank"),
        ({"files": {}}, "doesn't list"),
        ({"name": TWO}, "manifest in"),
        ({"probes": (other_probe(1),)}, "probe failed"),
    ],
)
async def test_an_adapter_that_is_not_what_it_says_is_rejected_with_the_reason(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, changes: dict[str, Any], why: str
) -> None:
    event = publish(paths.adapters, 1, **changes)
    manager.hear(event)
    await eventually(lambda: states(ledger).get(ONE) == "rejected")
    assert why in reason(ledger, ONE)
    assert deps.office.holder is None
    assert deps.engine.adapters() == frozenset()


@pytest.mark.parametrize("figure", ["NaN", "Infinity"])
async def test_a_manifest_whose_figures_are_no_numbers_is_rejected(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, figure: str
) -> None:
    """It came into office with a copy in the ledger that nobody could read again, or stood as a canary without end."""
    publish(paths.adapters, 1)
    file = paths.adapters / ONE / "manifest.json"
    file.write_text(file.read_text().replace('"reward":0.5', f'"reward":{figure}'))
    manager.look()
    await eventually(lambda: ONE in states(ledger))
    await manager.settled()
    assert states(ledger) == {ONE: "rejected"}
    assert "metrics.reward is no finite number" in reason(ledger, ONE)
    assert deps.office.holder is None


async def test_an_announcement_of_another_manifest_is_rejected(
    manager: ReleaseManager, ledger: Ledger, paths: DataPaths
) -> None:
    event = publish(paths.adapters, 1)
    manager.hear(event.model_copy(update={"manifest_sha256": "0" * 64}))
    await eventually(lambda: states(ledger).get(ONE) == "rejected")
    assert "announced" in reason(ledger, ONE)


async def test_weights_that_the_engine_refuses_are_rejected_and_the_incumbent_stays(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: deps.office.holder == ONE)
    engine.load_failure = AdapterLoadFailed("shapes don't fit")
    manager.hear(publish(paths.adapters, 2))
    await eventually(lambda: states(ledger).get(TWO) == "rejected")
    assert reason(ledger, TWO) == "shapes don't fit"
    assert deps.office.holder == ONE


@pytest.mark.parametrize(
    ("trouble", "counted"),
    [
        (NoRoomForAdapter("no room: 4 adapters are loaded"), "unavailable"),
        (EngineOverloaded("the engine is full"), "unavailable"),
        (RuntimeError("a defect"), "defect"),
    ],
)
async def test_an_adapter_that_meets_passing_trouble_is_put_off_and_not_rejected(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine, trouble: Exception, counted: str
) -> None:
    deps = make_deps(releases={"retry_s": 0.01})
    manager = ReleaseManager(deps)
    await manager.start()
    engine.load_failure = trouble
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: states(ledger).get(ONE) == "candidate" and engine.load_failure is None)
    manager.look()
    await eventually(lambda: deps.office.holder == ONE)
    await manager.close()
    assert deps.metrics.registry.get_sample_value("hustings_release_put_off_total", {"reason": counted}) == 1


async def test_what_meets_trouble_in_its_probe_is_unloaded_and_comes_again(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps = make_deps(releases={"retry_s": 0.01})
    manager = ReleaseManager(deps)
    await manager.start()
    await manager.settled()
    asked: list[frozenset[str]] = []

    async def full(*_: object) -> tuple[float, ...]:
        asked.append(engine.adapters())
        raise EngineOverloaded("the engine is full")

    with monkeypatch.context() as trouble:
        trouble.setattr(engine, "score", full)
        manager.hear(publish(paths.adapters, 1))
        await manager.settled()
        await eventually(lambda: bool(asked))
        assert asked[0] == {ONE}
        assert engine.adapters() == set()
    manager.look()
    await eventually(lambda: deps.office.holder == ONE)
    await manager.close()


async def test_probes_that_do_not_fit_the_context_reject_the_adapter_and_the_next_one_is_taken(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    long = tuple(range(1, engine.info.max_model_len + 1))
    probe = ProbeRecord(prompt_token_ids=long, response_token_ids=(1,), policy_logprobs=(-1.0,), base_logprobs=(-2.0,))
    manager.hear(publish(paths.adapters, 1, probes=(probe,)))
    await eventually(lambda: states(ledger).get(ONE) == "rejected")
    assert "can't be scored here" in reason(ledger, ONE)
    manager.hear(publish(paths.adapters, 2))
    await eventually(lambda: deps.office.holder == TWO)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(safetensors(9)),
        lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04."),
        lambda folder: (folder / "adapter_config.json").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: ((folder / "manifest.json").unlink(), (folder / "manifest.json").mkdir()),
    ],
)
def test_a_folder_that_was_tampered_with_is_refused(paths: DataPaths, spoil: Callable[[Path], Any]) -> None:
    publish(paths.adapters, 1)
    store = AdapterStore(paths.adapters)
    store.verify(ONE, manifest_sha256=None, base_fingerprint=FINGERPRINT, max_rank=4)
    spoil(paths.adapters / ONE)
    with pytest.raises(VerificationFailed):
        store.verify(ONE, manifest_sha256=None, base_fingerprint=FINGERPRINT, max_rank=4)


@pytest.mark.parametrize("weights", [b"", b"\x80\x04", b"\x00" * 8, safetensors(1)[:-1], b"\xff" * 64])
def test_weights_that_are_no_safetensors_are_refused(paths: DataPaths, weights: bytes) -> None:
    import hashlib

    publish(paths.adapters, 1)
    folder = paths.adapters / ONE
    (folder / "adapter_model.safetensors").write_bytes(weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["adapter_model.safetensors"] = hashlib.sha256(weights).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationFailed, match=r"safetensors|cut off"):
        AdapterStore(paths.adapters).verify(ONE, manifest_sha256=None, base_fingerprint=FINGERPRINT, max_rank=4)


@pytest.mark.parametrize("name", ["../policy-000001", "policy-1", "/etc/passwd", "policy-000001/../x", ""])
def test_a_name_is_never_a_path(paths: DataPaths, name: str) -> None:
    with pytest.raises(VerificationFailed):
        AdapterStore(paths.adapters).verify(name, manifest_sha256=None, base_fingerprint=FINGERPRINT, max_rank=4)


async def test_after_a_restart_the_office_holder_is_loaded_and_probed_again(
    manager: ReleaseManager, deps: ServeDeps, make_deps: MakeDeps, paths: DataPaths, engine: FakeEngine
) -> None:
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: deps.office.holder == ONE)
    await manager.close()
    engine._usable.clear()
    again = make_deps()
    second = ReleaseManager(again)
    await second.start()
    assert again.office.holder == ONE
    assert ONE in engine.adapters()
    await second.close()


async def test_an_office_holder_that_cannot_be_restored_gives_way_to_the_one_before(
    manager: ReleaseManager, deps: ServeDeps, make_deps: MakeDeps, ledger: Ledger, paths: DataPaths, engine: FakeEngine
) -> None:
    for number, name in ((1, ONE), (2, TWO)):
        manager.hear(publish(paths.adapters, number))
        await eventually(lambda name=name: deps.office.holder == name)  # type: ignore[misc]
    await manager.close()
    engine._usable.clear()
    (paths.adapters / TWO / "adapter_model.safetensors").write_bytes(b"damaged")
    again = make_deps()
    second = ReleaseManager(again)
    await second.start()
    assert again.office.holder == ONE
    assert states(ledger) == {ONE: "in_office", TWO: "rejected"}
    assert "damaged or was changed" in reason(ledger, TWO)
    await second.close()


@pytest.mark.parametrize("file", ["manifest.json", "adapter_config.json", "adapter_model.safetensors"])
async def test_an_office_holder_that_nobody_may_read_hands_over_at_the_start(
    deps: ServeDeps, ledger: Ledger, paths: DataPaths, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """As root, who runs the tests in a container, may read all, the file itself refuses."""
    before = ReleaseManager(deps)
    await before.start()
    for number in (1, 2):
        before.hear(publish(paths.adapters, number))
        await eventually(lambda: deps.office.holder == f"policy-{number:06d}")  # noqa: B023
    await before.close()
    await deps.engine.unload_adapter(TWO)
    real = io.open

    def refusing(path: Any, *more: Any, **others: Any) -> Any:
        if str(path).endswith(f"{TWO}/{file}"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **others)

    monkeypatch.setattr(io, "open", refusing)
    after = ReleaseManager(deps)
    await after.start()
    assert deps.office.holder == ONE
    assert (
        reason(ledger, TWO) == f"could not be restored: {paths.adapters / TWO / file} can't be read: Permission denied"
    )
    await after.close()


async def test_pages_and_lists_go_on_beside_a_manifest_that_the_ledger_has_damaged(
    deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    for number in (1, 2):
        manager.hear(publish(paths.adapters, number))
        await eventually(lambda: deps.office.holder == f"policy-{number:06d}")  # noqa: B023
    ledger._database.write(lambda connection: connection.execute(text("UPDATE releases SET manifest = '{'")))
    ledger.record_release(ReleaseChanged(name=TWO, before=None, after=ReleaseState.IN_OFFICE, reason="", actor="auto"))
    async with client_of(app, **OPERATOR) as client:
        for path in ("/v1/releases", "/v1/loop", "/v1/leaderboard", "/v1/releases/history"):
            assert (await client.get(path)).status_code == 200
        told = {row["name"]: row["unreadable"] for row in (await client.get("/v1/releases")).json()["releases"]}
        assert "Invalid JSON" in told[TWO]
        assert (await client.post("/v1/releases/rollback")).json()["office"] == ONE
        assert (await client.post(f"/v1/releases/{TWO}/promote")).status_code == 200
        rows = (await client.get("/v1/releases")).json()["releases"]
        assert rows[0]["unreadable"] is None  # verified again, it was written anew
    await manager.close()


async def test_what_was_published_while_serving_was_down_is_found_in_the_folder(
    deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    for number in (1, 2):
        publish(paths.adapters, number)
    (paths.adapters / ".policy-000003.tmp").mkdir()
    manager = ReleaseManager(deps)
    await manager.start()
    await eventually(lambda: deps.office.holder == TWO)
    assert states(ledger) == {ONE: "retired", TWO: "in_office"}
    await manager.close()


async def test_an_older_adapter_that_comes_late_is_not_put_into_office(
    manager: ReleaseManager, deps: ServeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    manager.hear(publish(paths.adapters, 2))
    await eventually(lambda: deps.office.holder == TWO)
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: states(ledger).get(ONE) == "retired")
    assert deps.office.holder == TWO


async def test_without_auto_promotion_the_operator_decides(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    deps = make_deps(releases={"gate": "operator"})
    app = create_app(deps)
    manager: ReleaseManager = app.state.releases
    await manager.start()
    manager.hear(publish(paths.adapters, 1))
    await eventually(lambda: states(ledger).get(ONE) == "verified")
    assert deps.office.holder is None
    async with client_of(app) as client:
        assert (await client.post(f"/v1/releases/{ONE}/promote")).status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert (await client.post(f"/v1/releases/{ONE}/promote", headers=wrong)).status_code == 401
        answer = await client.post(f"/v1/releases/{ONE}/promote", headers=OPERATOR, json={"reason": "looks good"})
        assert answer.json() == {"office": ONE}
        assert (await client.post(f"/v1/releases/{ONE}/promote", headers=OPERATOR)).status_code == 409
        assert (await client.post(f"/v1/releases/{TWO}/promote", headers=OPERATOR)).status_code == 404
        assert (await client.post("/v1/releases/nonsense/promote", headers=OPERATOR)).status_code == 422
        shown = (await client.get("/v1/releases")).json()
        assert shown["office"] == ONE
        assert shown["releases"][0]["actor"] == "operator"
        assert shown["releases"][0]["reason"] == "looks good"
        answer = await client.post(f"/v1/releases/{ONE}/reject", headers=OPERATOR, json={"reason": "rude"})
        assert answer.json() == {"office": None}
        assert (await client.post(f"/v1/releases/{ONE}/reject", headers=OPERATOR)).status_code == 409
        assert (await client.post("/v1/releases/rollback", headers=OPERATOR)).status_code == 409
    assert states(ledger) == {ONE: "rejected"}
    await manager.close()


async def test_of_adapters_that_wait_for_an_operator_the_newest_stays_loaded(
    make_deps: MakeDeps, ledger: Ledger, paths: DataPaths
) -> None:
    """They filled all places, and the trainer's own adapter found none: no cycle could sample through serving."""
    deps = make_deps(releases={"gate": "operator"}, max_loras=4)
    manager = ReleaseManager(deps)
    await manager.start()
    for number in (1, 2):
        manager.hear(publish(paths.adapters, number))
        name = f"policy-{number:06d}"
        await eventually(lambda name=name: states(ledger).get(name) == "verified")  # type: ignore[misc]
        await manager.promote(name, "good")
    await deps.engine.load_adapter("rollout-1", paths.adapters / ONE)
    for number in (3, 4, 5, 6):
        manager.hear(publish(paths.adapters, number))
        name = f"policy-{number:06d}"
        await eventually(lambda name=name: states(ledger).get(name) == "verified")  # type: ignore[misc]
        await eventually(lambda: len(deps.engine.adapters()) == 4)
    assert deps.engine.adapters() == {ONE, TWO, "policy-000006", "rollout-1"}
    await manager.close()


async def test_the_follower_hears_of_adapters_through_an_event_log_that_comes_and_goes(
    manager: ReleaseManager, deps: ServeDeps, paths: DataPaths
) -> None:
    log = FakeEventLog()
    log.down = True
    follower = ReleaseFollower(
        log, hear=manager.hear, heed=manager.stir, look=manager.look, metrics=deps.metrics, retry_s=0.01
    )
    follower.start()
    log.down = False
    await asyncio.to_thread(log.wait_for, lambda: log.ensured > 0)
    event = publish(paths.adapters, 1)
    sent = [
        OutgoingRecord(ADAPTER_TOPIC, "x", b"not json"),
        OutgoingRecord(ADAPTER_TOPIC, "x", None),
        OutgoingRecord(ADAPTER_TOPIC, event.name, event.to_bytes()),
    ]
    assert log.producer().send(sent) == [None, None, None]
    await eventually(lambda: deps.office.holder == ONE)
    await asyncio.to_thread(follower.stop)
    assert deps.metrics.registry.get_sample_value("hustings_release_unreadable_total") == 1


def change(name: str, after: str) -> ReleaseChanged:
    return ReleaseChanged(name=name, before=None, after=ReleaseState(after), reason="", actor="auto")


@pytest.mark.parametrize(
    ("history", "stack"),
    [
        ([], []),
        ([("1", "candidate"), ("1", "verified"), ("1", "in_office")], ["1"]),
        ([("1", "in_office"), ("2", "in_office"), ("1", "retired")], ["1", "2"]),
        ([("1", "in_office"), ("2", "in_office"), ("1", "retired"), ("1", "in_office"), ("2", "retired")], ["1"]),
        ([("1", "in_office"), ("1", "retired")], []),
        ([("1", "in_office"), ("2", "in_office"), ("1", "rejected")], ["2"]),
    ],
)
def test_the_stack_of_office_holders_follows_the_history(history: list[tuple[str, str]], stack: list[str]) -> None:
    assert office_stack([change(name, after) for name, after in history]) == stack


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (ProbeReport(0.001, 0.001, 0.3, 0.3, 0.3, 9), None),
        (ProbeReport(0.001, 0.2, 0.3, 0.3, 0.3, 9), "at most"),
        (ProbeReport(0.001, float("nan"), 0.3, 0.3, 0.3, 9), "at most"),
        (ProbeReport(0.02, 0.02, 0.03, 0.03, 0.03, 9), "told from the base"),
        (ProbeReport(0.0, 0.04, 0.04, 0.0, 0.0, 9), "base answers"),
        # The manifest says NaN of the base; the engine does.
        (ProbeReport(float("nan"), 0.001, float("nan"), 0.3, float("nan"), 9), "told from the base"),
        (ProbeReport(0.001, 0.001, 0.3, float("nan"), 0.3, 9), "base answers"),
    ],
)
def test_the_probe_passes_only_the_adapter_that_was_trained(report: ProbeReport, why: str | None) -> None:
    if why is None:
        judge(report, ReleasesConfig())
        return
    with pytest.raises(ProbeFailed, match=why):
        judge(report, ReleasesConfig())


def test_an_announcement_of_a_path_as_name_is_no_announcement() -> None:
    with pytest.raises(ValueError, match="name"):
        AdapterPublished(name="../x", uri="x", manifest_sha256="0" * 64, base_model="b")
