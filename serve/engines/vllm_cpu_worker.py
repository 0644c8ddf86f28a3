"""What vLLM's CPU worker process imports: with it our parts are put into vLLM there. Needs vLLM."""

from __future__ import annotations

from serve.engines import vllm_cpu_lora, vllm_cpu_seeds, vllm_logprobs


class WorkerExtension:
    """Named in vLLM's `worker_extension_cls`, which makes the worker import this module."""


vllm_cpu_lora.install()
vllm_cpu_seeds.install()
vllm_logprobs.install_in_worker()
