"""How vLLM is set up: environment and engine arguments, from our configuration. Pure; imports no vLLM."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.config import ServeConfig

GIB = 1 << 30

ALLOCATORS = ("usr/lib/*/libtcmalloc_minimal.so.4", "usr/lib*/libtcmalloc_minimal.so.4")
"""Where distributions put tcmalloc, below the root."""


def has_gpu() -> bool:
    """Whether an NVIDIA driver with a device is here; asked before vLLM is imported, which would settle it for good."""
    return Path("/proc/driver/nvidia/gpus").is_dir() or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def is_local(model: str) -> bool:
    """Whether the model is a folder here rather than a hub id."""
    return Path(model).is_dir()


def environment(config: ServeConfig, model: str, given: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """Variables to set before vLLM is imported; what the user has set stays.

    Intel's and GNU's OpenMP threads spin while they wait for work. On a machine that also trains, the spinning costs a
    factor of ten, so both are told to sleep. Intel's, which vLLM preloads, sleeps at once: with spins of 50 or 200 us
    an engine alone is quicker, and one beside a trainer slower by as much (docs/log.md). Thread binding is off: a bound
    engine and a trainer would sit on one core.
    """
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cpu:
        wanted |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads or _cores()),
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
            # The first request for log-probs would compile a kernel: 15 s in which no stream moves, and a C++ compiler.
            "TORCHDYNAMO_DISABLE": "1",
        }
    if is_local(model):
        wanted |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {name: value for name, value in wanted.items() if name not in given}


def preload(given: str, root: Path = Path("/"), prefix: Path = Path(sys.prefix)) -> str:
    """LD_PRELOAD for the engine's processes: tcmalloc and Intel's OpenMP where they lie; "" for none.

    vLLM's CPU build advises both; without them it works, slower.
    """
    found = [path for path in given.split(":") if path]
    places = {
        "libtcmalloc": sorted(path for pattern in ALLOCATORS for path in root.glob(pattern)),
        "libiomp5": sorted(prefix.glob("lib/libiomp5.so")),
    }
    for name, paths in places.items():
        if paths and not any(name in path for path in found):
            found.append(str(paths[0]))
    return ":".join(found)


def context_length(model: str) -> int | None:
    """The context length that a model folder names, in tokens; None where it can't be known before the load."""
    file = Path(model) / "config.json"
    if not file.is_file():
        return None
    length = json.loads(file.read_text()).get("max_position_embeddings")
    return int(length) if length else None


def engine_arguments(config: ServeConfig, model: str, *, cpu: bool) -> dict[str, Any]:
    """Arguments of `AsyncEngineArgs` (and, as flags, of `vllm serve`)."""
    arguments: dict[str, Any] = {
        "model": model,
        "max_model_len": min(config.max_model_len, context_length(model) or config.max_model_len),
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_batch_tokens or (CPU_BATCH_TOKENS if cpu else None),
        "enable_lora": True,
        "max_loras": config.max_loras + SPARE_SLOTS,
        "max_cpu_loras": config.max_loras + SPARE_SLOTS,
        "max_lora_rank": _vllm_rank(config.max_lora_rank),
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": MAX_LOGPROBS,
        "disable_log_stats": True,
        "trust_remote_code": False,
        "seed": config.engine_seed,
    }
    if cpu:
        arguments |= {
            "dtype": "float32" if config.dtype == "auto" else config.dtype,
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(config.kv_cache_gib * GIB),
            "block_size": CPU_BLOCK_SIZE,
            "worker_extension_cls": CPU_EXTENSION,
        }
    else:
        arguments |= {"dtype": config.dtype, "gpu_memory_utilization": config.gpu_memory_utilization}
    return {name: value for name, value in arguments.items() if value is not None}


def server_command(config: ServeConfig, model: str, port: int, *, cpu: bool, python: str = sys.executable) -> list[str]:
    """The command of a vLLM OpenAI server that `vllm_http` can use; set `server_environment` beside it."""
    # `vllm serve` looks for a distribution named "vllm"; the CPU build's has another name. This is the same server.
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    arguments = engine_arguments(config, model, cpu=cpu)
    for name in ("disable_log_stats", "trust_remote_code"):
        del arguments[name]
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    return [*command, "--disable-uvicorn-access-log"]


def server_environment(config: ServeConfig, model: str, given: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """Variables for `server_command`, over and above those given."""
    return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", **environment(config, model, given, cpu=cpu)}


MAX_LOGPROBS = 20
"""The most likely tokens that a request may ask for at each step (OpenAI's limit)."""

CPU_EXTENSION = "serve.engines.vllm_cpu_worker.WorkerExtension"
"""Brings our LoRA kernels, and log-probs without ranks, into vLLM's worker process."""

SPARE_SLOTS = 1
"""Adapter slots that stay empty. vLLM marks a token without adapter by slot -1, and its own CPU kernels index with it:
in a batch that mixes base and adapters, the base's tokens get what lies in the last slot. So it stays empty."""

CPU_BLOCK_SIZE = 32
"""Tokens of a block of the key-value cache; only whole blocks are shared, and vLLM's 128 would fit few chat prompts."""

CPU_BATCH_TOKENS = 512
"""Tokens of one step: a long prompt is computed in pieces of this size, between which other streams get their token."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM lays its adapter slots out for."""


def _vllm_rank(rank: int) -> int:
    fitting = [each for each in RANKS if each >= rank]
    if not fitting:
        raise ValueError(f"serve.max_lora_rank is {rank}; vLLM takes {RANKS[-1]} at most")
    return fitting[0]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
