"""Gradient checkpointing (Chen et al. 2016): blocks keep what enters them and are run again on the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from train.lora import AdapterSet


@contextmanager
def recomputed(blocks: Sequence[Any], adapters: AdapterSet) -> Iterator[None]:
    """Run a forward pass inside; its blocks will be run again, with the adapter of now, when gradients are asked for.

    Args:
        blocks: of a transformers model; each knows how to be checkpointed while it is "training". Only the block itself
            is told so: dropout inside stays off.
        adapters: by the time of the way back another adapter may be active, or none.
    """
    active = adapters.active

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), adapters.using(active)

    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    for block in blocks:
        block.gradient_checkpointing, block.training, block._gradient_checkpointing_func = True, True, run
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing, block.training = False, False
