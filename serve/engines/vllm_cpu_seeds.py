"""Seeded requests on vLLM's CPU build, whose prompt takes more than one step.

Such a step samples a token for the request too and throws it away. vLLM then sets the request's generator back by an
offset, which CUDA's generators have; a CPU's has none, and the error ends the engine: one seeded request with a prompt
longer than a step ended serving for everybody. Here the generator gets back the state that it had before the draw, so
that a seed says the same however its prompt is cut.

Installed in vLLM's worker process only (`vllm_cpu_worker`). Importing this costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def drawn_back(sample: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `_sample`, after which the generators of draws that are thrown away are as before."""

    def sampled(self: Any, *given: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in thrown_away(self).values()]
        found = sample(self, *given)
        for generator, state in before:
            generator.set_state(state)
        return found

    return sampled


def without_offsets(bookkeeping: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `_bookkeeping_sync`, which finds no generator to set back: that is done."""

    def kept(self: Any, *given: Any) -> Any:
        hidden = thrown_away(self)
        generators = self.input_batch.generators
        for index in hidden:
            del generators[index]
        try:
            return bookkeeping(self, *given)
        finally:
            generators.update(hidden)

    return kept


def thrown_away(runner: Any) -> dict[int, Any]:
    """Generators of the batch's requests whose draw of this step is thrown away, by their place."""
    batch = runner.input_batch
    mask = runner.discard_request_mask.np
    return {index: each for index, each in batch.generators.items() if index < batch.num_reqs and mask[index]}


def install() -> None:
    """Put these into vLLM's runner. Twice does no harm."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if "_sample" not in vars(CPUModelRunner):
        runner: Any = CPUModelRunner
        runner._sample = drawn_back(CPUModelRunner._sample)
        runner._bookkeeping_sync = without_offsets(CPUModelRunner._bookkeeping_sync)
