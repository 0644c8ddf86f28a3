"""The real engine against transformers and PEFT on the same weights, and what it does when its core process dies."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from feedback.contracts import Message
from serve.engines.base import EngineUnavailable, GenerationRequest, Sampling
from tests.serve.test_engine_contract import ask, next_name, prompt_of, steady

torch = pytest.importorskip("torch")

if TYPE_CHECKING:
    from serve.engines.vllm_http import VllmHttpEngine
    from serve.engines.vllm_inprocess import VllmEngine

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


def oracle(model: Path, adapter: Path | None, ids: tuple[int, ...], temperature: float = 1.0) -> list[float]:
    """Log-probs of each id but the first under the tempered model, by transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        found = PeftModel.from_pretrained(found, str(adapter))
    with torch.no_grad():
        logits = found.eval()(torch.tensor([ids])).logits[0, :-1] / temperature
    picked = torch.log_softmax(logits.double(), dim=-1).gather(1, torch.tensor(ids[1:])[:, None])
    return [float(value) for value in picked[:, 0]]


@pytest.mark.parametrize("which", [None, 0, 1])
async def test_scores_are_those_of_transformers_and_peft(
    vllm_engine: VllmEngine, tiny_model: Path, tiny_adapters: tuple[Path, ...], which: int | None
) -> None:
    name = None if which is None else next_name()
    if name is not None and which is not None:
        await vllm_engine.load_adapter(name, tiny_adapters[which])
    ids = (*await prompt_of(vllm_engine), *range(40, 120))
    expected = oracle(tiny_model, None if which is None else tiny_adapters[which], ids)
    assert await vllm_engine.score(ids, name) == pytest.approx(expected, abs=1e-3)
    # Again, now that the prefix cache holds the prompt.
    assert await vllm_engine.score(ids, name) == pytest.approx(expected, abs=1e-3)
    if name is not None:
        await vllm_engine.unload_adapter(name)


async def test_recorded_logprobs_are_of_the_tempered_distribution(vllm_engine: VllmEngine, tiny_model: Path) -> None:
    prompt = await prompt_of(vllm_engine)
    answer = (await ask(vllm_engine, steady(30, logprobs=0, temperature=0.6, seed=4), prompt=prompt))[0]
    expected = oracle(tiny_model, None, (*prompt, *answer.ids), temperature=0.6)
    assert answer.logprobs == pytest.approx(expected[len(prompt) - 1 :], abs=1e-3)


async def test_the_prompt_is_what_the_models_own_template_makes(vllm_engine: VllmEngine, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    messages = [Message(role="system", content="be kind"), Message(role="user", content="grün €?")]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    expected = tokenizer.apply_chat_template(
        [message.model_dump() for message in messages], add_generation_prompt=True, return_dict=False
    )
    assert list(await vllm_engine.tokenize(messages)) == expected


async def test_the_template_is_told_what_the_configuration_says_by_both_engines(
    vllm_engine: VllmEngine, vllm_http_engine: VllmHttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [Message(role="user", content="hi")]
    plain = await vllm_engine.tokenize(messages)
    told = vllm_engine._config.model_copy(update={"chat_template_kwargs": {"quick": True}})
    monkeypatch.setattr(vllm_engine, "_config", told)
    (server,) = vllm_http_engine._servers
    monkeypatch.setattr(server, "_template", {"quick": True})
    quick = await vllm_engine.tokenize(messages)
    assert quick[: len(plain)] == plain
    assert len(quick) > len(plain)
    assert await vllm_http_engine.tokenize(messages) == quick


async def test_an_adapter_for_another_family_is_served_as_peft_has_it(tiny_model: Path, tmp_path: Path) -> None:
    """Gemma 3: layers with a window, scaled embeddings, norms of queries and keys; the trainer's view of it is tested
    in tests/train/test_architectures.py against the same oracle."""
    from serve.config import ServeConfig
    from serve.engines.vllm_inprocess import VllmEngine
    from tests.tiny_model import make_tiny_adapter
    from tests.train.families import make

    settings = {"head_dim": 32, "sliding_window": 16, "_sliding_window_pattern": 2, "vocab_size": 304}
    folder = make("Gemma3", settings, tmp_path / "gemma", tiny_model)
    adapter = make_tiny_adapter(folder, tmp_path / "adapter")
    config = ServeConfig(max_model_len=256, max_num_seqs=4, reserved_seqs=1, kv_cache_gib=0.0625)
    engine = VllmEngine(str(folder), config)
    await engine.start()
    try:
        await engine.load_adapter("other", adapter)
        ids = tuple(range(40, 100))
        said, bare = oracle(folder, adapter, ids), oracle(folder, None, ids)
        assert max(abs(a - b) for a, b in zip(said, bare, strict=True)) > 0.1
        assert await engine.score(ids, "other") == pytest.approx(said, abs=1e-3)
        assert await engine.score(ids, None) == pytest.approx(bare, abs=1e-3)
    finally:
        await engine.close()


async def test_a_dead_core_process_ends_streams_with_an_error_and_fails_the_health_check(tiny_model: Path) -> None:
    from serve.config import ServeConfig
    from serve.engines.vllm_inprocess import VllmEngine

    config = ServeConfig(max_model_len=256, max_num_seqs=4, reserved_seqs=1, kv_cache_gib=0.0625)
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    engine = VllmEngine(str(tiny_model), config)
    await engine.start()
    prompt = await engine.tokenize([Message(role="user", content="hi")])
    begun = asyncio.Event()

    async def stream() -> None:
        wanted = GenerationRequest(prompt, Sampling(max_tokens=200, ignore_eos=True), "doomed")
        async for _ in engine.generate(wanted):
            begun.set()

    running = asyncio.create_task(stream())
    await begun.wait()
    for child in psutil.Process(os.getpid()).children(recursive=True):
        if child.pid not in before:
            child.kill()
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(running, 30)
    with pytest.raises(EngineUnavailable):
        await engine.check_health()
    assert engine.load().running + engine.load().waiting == 0
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.check_health()
