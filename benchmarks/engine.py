"""Measure the in-process engine: start, tokens a second by batch, the gap of a swap, and company on the same cores.

    python -m benchmarks.engine MODEL [--dtype float32] [--contend] [--batches 1,2,8,16]

MODEL is a Hugging Face folder. Environment variables that are set win over the engine's own (OMP_WAIT_POLICY=ACTIVE,
VLLM_CPU_OMP_THREADS_BIND=auto, ...). With --contend another process, niced, runs forward passes of the model meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from feedback.contracts import Message
from serve.config import ServeConfig
from serve.engines.base import Engine, GenerationRequest, Sampling

PROMPTS = ("What makes a good day?", "Tell me about rivers.", "How do I bake bread?", "Why is the sky blue?")

COMPANY = """
import os, sys, time, torch
os.nice(int(sys.argv[2]))
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.randint(5, 1000, (8, 128))
print("ready", flush=True)
began, tokens = time.monotonic(), 0
with torch.no_grad():
    while True:
        model(ids); tokens += ids.numel()
        print(f"{tokens / (time.monotonic() - began):.0f}", flush=True)
"""


async def stream(engine: Engine, name: str, tokens: int, adapter: str | None) -> tuple[float, float, int, float]:
    """Seconds to the first token, longest gap after it, tokens, whole time."""
    prompt = await engine.tokenize([Message(role="user", content=PROMPTS[hash(name) % len(PROMPTS)])])
    request = GenerationRequest(prompt, Sampling(max_tokens=tokens, ignore_eos=True, logprobs=0), name, adapter)
    began = last = time.monotonic()
    first, gap, count = 0.0, 0.0, 0
    async for chunk in engine.generate(request):
        now = time.monotonic()
        if count == 0:
            first = now - began
        else:
            gap = max(gap, now - last)
        last, count = now, count + len(chunk.token_ids)
    return first, gap, count, last - began


async def batch(engine: Engine, size: int, tokens: int, adapter: str | None) -> dict[str, float]:
    """So many streams at once."""
    began = time.monotonic()
    done = await asyncio.gather(*(stream(engine, f"b{size}-{at}-{adapter}", tokens, adapter) for at in range(size)))
    seconds = time.monotonic() - began
    return {
        "tok_s": round(sum(each[2] for each in done) / seconds, 1),
        "first_s": round(max(each[0] for each in done), 2),
        "gap_s": round(max(each[1] for each in done), 2),
    }


async def measure(options: argparse.Namespace, adapters: list[Path]) -> dict[str, object]:
    """All figures of one engine."""
    from serve.engines.vllm_inprocess import VllmEngine

    engine = VllmEngine(options.model, ServeConfig(dtype=options.dtype, max_num_seqs=32))
    began = time.monotonic()
    await engine.start()
    figures: dict[str, object] = {"start_s": round(time.monotonic() - began, 1), "dtype": engine.info.dtype}
    await engine.load_adapter("policy-000001", adapters[0])
    await batch(engine, 1, 8, "policy-000001")
    company = contend(options) if options.contend else None
    for size in options.batches:
        for who, adapter in (("lora", "policy-000001"), ("base", None)):
            if who in options.who:
                figures[f"{who}_{size}"] = await batch(engine, size, options.tokens, adapter)
    if options.swap:
        running = asyncio.create_task(batch(engine, 8, 60, "policy-000001"))
        await asyncio.sleep(3)
        began = time.monotonic()
        await engine.load_adapter("policy-000002", adapters[1])
        figures["add_lora_s"] = round(time.monotonic() - began, 2)
        figures["swap_streams"] = await running
    if company is not None:
        company.terminate()
        figures["company_tok_s"] = float((company.communicate()[0].split() or ["0"])[-1])
    await engine.close()
    return figures


def contend(options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the other process and wait until it computes."""
    command = [sys.executable, "-c", COMPANY, options.model, str(options.nice)]
    environment = {**os.environ, **dict(pair.split("=", 1) for pair in options.company_env)}
    company = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert company.stdout is not None
    company.stdout.readline()
    return company


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1, 2, 8, 16])
    parser.add_argument("--who", default="lora,base")
    parser.add_argument("--swap", action="store_true")
    parser.add_argument("--contend", action="store_true")
    parser.add_argument("--nice", type=int, default=19)
    parser.add_argument("--company-env", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from tests.tiny_model import make_tiny_adapter

        made = [
            make_tiny_adapter(Path(options.model), Path(folder) / str(seed), seed=seed, rank=16, scale=0.01)
            for seed in ((1, 2) if options.swap else (1,))
        ]
        print(json.dumps(asyncio.run(measure(options, made)), indent=1))


if __name__ == "__main__":
    main()
