"""What the engines are put together from: registry, admission, settings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from feedback.contracts import Message
from serve.config import ServeConfig
from serve.engines import vllm_settings
from serve.engines.admission import Admission
from serve.engines.base import (
    AdapterLoadFailed,
    AdapterNotLoaded,
    EngineInfo,
    EngineOverloaded,
    NoRoomForAdapter,
    Priority,
    PromptTooLong,
    Sampling,
    check_text,
)
from serve.engines.registry import AdapterRegistry, HeldAdapter, folder_digest
from serve.engines.vllm_http import VllmHttpEngine
from serve.engines.vllm_inprocess import VllmEngine
from serve.engines.vllm_translate import chunks


def adapter_folder(path: Path, *tensors: str) -> Path:
    header = json.dumps({name: {} for name in tensors}).encode()
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    one, same, other = (
        adapter_folder(tmp_path / name, tensor) for name, tensor in (("a", "q"), ("b", "q"), ("c", "k"))
    )
    assert folder_digest(one) == folder_digest(same) != folder_digest(other)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", "q")
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(AdapterLoadFailed, match="safetensors"):
        folder_digest(folder)


def test_an_adapter_of_the_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterLoadFailed, match="head"):
        folder_digest(adapter_folder(tmp_path / "a", "base_model.model.lm_head.lora_A.weight"))


def registry_with(name: str) -> AdapterRegistry:
    registry = AdapterRegistry(capacity=1)
    planned = registry.plan(name, Path("x"), "digest")
    assert planned is not None
    registry.admit(planned)
    return registry


def test_a_thread_that_asks_who_is_there_meets_no_half_change() -> None:
    """The Loop page's and the metrics' threads ask while the event loop loads and unloads."""
    registry = AdapterRegistry(capacity=3)

    class Leaving(HeldAdapter):
        """While one looks at it, the next is freed."""

        def __getattribute__(self, name: str) -> object:
            if name in {"usable", "users"} and (second := registry.find("b")) is not None:
                registry.forget(second)
            return super().__getattribute__(name)

    for names in (registry.names, registry.by_adapter):
        registry.admit(Leaving("a", 1, Path("a"), "1"))
        registry.admit(HeldAdapter("b", 2, Path("b"), "2"))
        registry.admit(HeldAdapter("c", 3, Path("c"), "3"))
        names()
        assert registry.find("b") is None


def test_a_second_load_of_the_same_name_gets_a_fresh_number() -> None:
    registry = registry_with("policy-000001")
    held = registry.find("policy-000001")
    assert held is not None
    held.usable = False
    registry.forget(held)
    again = registry.plan("policy-000001", Path("x"), "digest")
    assert again is not None
    assert again.number != held.number


def test_a_full_registry_names_what_is_loaded() -> None:
    with pytest.raises(NoRoomForAdapter, match="policy-000001"):
        registry_with("policy-000001").plan("policy-000002", Path("y"), "other")


async def test_draining_waits_for_every_user() -> None:
    registry = registry_with("policy-000001")
    with registry.use("policy-000001"):
        with registry.use("policy-000001"):
            drain = asyncio.create_task(registry.drain("policy-000001"))
            await asyncio.sleep(0)
            with pytest.raises(AdapterNotLoaded), registry.use("policy-000001"):
                pass
        await asyncio.sleep(0)
        assert not drain.done()
    assert await drain is not None


async def test_rollouts_leave_slots_for_people() -> None:
    admission = Admission(slots=4, reserved=2, max_waiting=10)
    inside: list[str] = []
    leave = asyncio.Event()

    async def run(name: str, priority: Priority) -> None:
        async with admission.enter(priority, 1):
            inside.append(name)
            await leave.wait()

    tasks = [asyncio.create_task(run(f"rollout {at}", Priority.ROLLOUT)) for at in range(4)]
    tasks.append(asyncio.create_task(run("person", Priority.PERSON)))
    await asyncio.sleep(0)
    assert inside == ["rollout 0", "rollout 1", "person"]
    assert admission.held_back == 2
    leave.set()
    await asyncio.gather(*tasks)
    assert inside[3:] == ["rollout 2", "rollout 3"]
    assert admission.unfinished == admission.held_back == 0


async def test_a_rollout_that_is_cancelled_while_it_waits_gives_its_place_away() -> None:
    admission = Admission(slots=2, reserved=1, max_waiting=10)
    async with admission.enter(Priority.ROLLOUT, 1):
        waiting = asyncio.create_task(admission.enter(Priority.ROLLOUT, 1).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(1), admission.enter(Priority.ROLLOUT, 1):
        assert admission.unfinished == 1
    assert admission.unfinished == 0


async def test_a_request_wider_than_the_rollout_slots_goes_in_alone() -> None:
    admission = Admission(slots=4, reserved=2, max_waiting=10)
    async with asyncio.timeout(1), admission.enter(Priority.ROLLOUT, 8):
        assert admission.held_back == 0


async def test_waiting_rollouts_never_refuse_a_person_but_people_do() -> None:
    admission = Admission(slots=1, reserved=0, max_waiting=1)
    async with admission.enter(Priority.PERSON, 1), admission.enter(Priority.PERSON, 1):
        with pytest.raises(EngineOverloaded):
            async with admission.enter(Priority.PERSON, 1):
                pass
    async with admission.enter(Priority.ROLLOUT, 2), admission.enter(Priority.PERSON, 1):
        pass


def test_the_environment_keeps_what_the_user_has_set(tmp_path: Path) -> None:
    wanted = vllm_settings.environment(ServeConfig(threads=3), str(tmp_path), {"OMP_WAIT_POLICY": "ACTIVE"}, cpu=True)
    assert "OMP_WAIT_POLICY" not in wanted
    assert wanted["KMP_BLOCKTIME"] == "0"
    assert wanted["OMP_NUM_THREADS"] == "3"
    assert wanted["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in vllm_settings.environment(ServeConfig(), "owner/model", {}, cpu=True)
    assert "KMP_BLOCKTIME" not in vllm_settings.environment(ServeConfig(), "owner/model", {}, cpu=False)


def test_libraries_are_preloaded_once_and_only_where_they_lie(tmp_path: Path) -> None:
    assert vllm_settings.preload("", tmp_path, tmp_path) == ""
    allocator = tmp_path / "usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
    openmp = tmp_path / "lib/libiomp5.so"
    for library in (allocator, openmp):
        library.parent.mkdir(parents=True)
        library.touch()
    assert vllm_settings.preload("", tmp_path, tmp_path) == f"{allocator}:{openmp}"
    assert vllm_settings.preload("/other/libtcmalloc.so", tmp_path, tmp_path) == f"/other/libtcmalloc.so:{openmp}"


def test_a_cpu_engine_computes_in_float32_and_keeps_a_slot_empty() -> None:
    cpu = vllm_settings.engine_arguments(ServeConfig(max_loras=4, max_lora_rank=12), "m", cpu=True)
    assert cpu["dtype"] == "float32"
    assert cpu["max_loras"] == 5
    assert cpu["max_lora_rank"] == 16
    assert cpu["kv_cache_memory_bytes"] == 1 << 30
    gpu = vllm_settings.engine_arguments(ServeConfig(), "m", cpu=False)
    assert gpu["dtype"] == "auto"
    assert "enforce_eager" not in gpu
    assert "worker_extension_cls" not in gpu


def part(index: int, text: str = "", ids: tuple[int, ...] = (), finish: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(index=index, text=text, token_ids=ids, finish_reason=finish, logprobs=None)


def test_of_the_chunks_of_one_step_all_but_the_last_say_that_more_follows() -> None:
    output = SimpleNamespace(outputs=[part(0, "a", (1,)), part(1), part(2, "", (2,)), part(3, "", (), "stop")])
    found = list(chunks(output, Sampling(max_tokens=4, n=4)))
    assert [(each.index, each.more) for each in found] == [(0, True), (2, True), (3, False)]
    assert [each.more for each in chunks(SimpleNamespace(outputs=[part(0, "a", (1,))]), Sampling(4))] == [False]


@pytest.mark.parametrize("kind", ["in process", "over HTTP"])
async def test_a_conversation_that_can_never_fit_is_refused_untokenized(kind: str) -> None:
    """Tokenizing a megabyte held up every stream for half a second."""
    engine: VllmEngine | VllmHttpEngine
    if kind == "in process":
        engine = VllmEngine("model", ServeConfig())
        engine._dead, engine._llm = None, SimpleNamespace(errored=False)
    else:
        engine = VllmHttpEngine(["http://nowhere"], ServeConfig())
    engine._info = EngineInfo("model", "1", "float32", max_model_len=100, max_lora_rank=8)
    with pytest.raises(PromptTooLong, match="3201 characters"):
        await engine.tokenize([Message(role="user", content="x" * 3200), Message(role="user", content="y")])
    check_text([Message(role="user", content="x" * 3200)], 100)
    if isinstance(engine, VllmHttpEngine):
        await engine.close()
