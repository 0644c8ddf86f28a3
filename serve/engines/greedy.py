"""Several answers at temperature 0 are one: vLLM, which refuses n > 1 there, writes it once, and each gets it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from serve.engines.base import Chunk, Sampling

GREEDY_BELOW = 1e-5
"""vLLM takes the likeliest token below this temperature."""


def written(wanted: Sampling) -> Sampling:
    """What the engine is asked for: one answer where all are the same, else just what is wanted."""
    return replace(wanted, n=1) if wanted.n > 1 and wanted.temperature < GREEDY_BELOW else wanted


def copies(chunk: Chunk, answers: int) -> Iterator[Chunk]:
    """A chunk of the one answer for each that it stands for."""
    for index in range(answers):
        yield replace(chunk, index=index, more=chunk.more or index < answers - 1)
