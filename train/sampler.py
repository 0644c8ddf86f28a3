"""The trainer's own sampler: merged LoRA weights, a key-value cache, finished answers dropped, seeded to the bit.

The noise of an answer depends on the seed and its place in the call alone, not on how the batch was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.base import POLICY, Base
from train.kernels import frozen_linear
from train.packing import Packed, TreeLayout, View, gather_rows, grouped_attention, pack
from train.rollout import Sample

CACHE_BYTES = 512 * 2**20
"""Most that a batch's key-value cache may take; longer prompts are decoded in smaller batches."""
COMPACT_BELOW = 0.75
"""The batch is compacted when this share of it or less is still unfinished."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...] = ()


class LocalRollouts:
    """Samples from the policy adapter of the trainer's own base."""

    local = True

    def __init__(self, base: Base, *, adapter: str | None = POLICY, batch: int = 64, dtype: str = "float32") -> None:
        """Args:
        base: the model.
        adapter: to sample from; None for the bare base.
        batch: answers decoded at once.
        dtype: of the merged weights, where the base is in float32; else they are of its type.
        """
        self._base = base
        self._adapter = adapter
        self._batch = batch
        self._dtype: torch.dtype = base.dtype if base.dtype != torch.float32 else getattr(torch, dtype)

    @property
    def width(self) -> int:
        """Size of the states that it keeps."""
        return self._base.width

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        only: slice | None = None,
    ) -> list[Sample]:
        """Sample; equal arguments and weights give equal bits on a CPU. `only`: these prompts' part of the answers."""
        noise = torch.rand((len(prompts) * n, max_tokens), generator=torch.Generator().manual_seed(seed))
        if only is not None:
            prompts, noise = prompts[only], noise[only.start * n : only.stop * n]
        rows = [prompt for prompt in prompts for _ in range(n)]
        samples: list[Sample] = []
        with torch.no_grad(), self._base.adapters.merged(self._adapter, self._dtype):
            head = self._base.head.to(self._dtype)
            while len(samples) < len(rows):
                start = len(samples)
                part = rows[start : start + self._fitting(rows[start : start + self._batch], max_tokens)]
                decoding = _Decoding(self._base, head, part, noise[start : start + len(part)], temperature)
                samples += decoding.run()
        return samples

    def close(self) -> None:
        """Nothing is held."""

    def _fitting(self, rows: Sequence[tuple[int, ...]], max_tokens: int) -> int:
        layers, heads, width = self._base.attention_shape
        columns = max(map(len, rows)) + max_tokens
        row_bytes = 2 * layers * heads * width * columns * self._base.head.element_size()
        return max(1, min(len(rows), CACHE_BYTES // row_bytes))


class _Decoding:
    """One batch on its way. R rows still decoded; buffers hold all rows of the batch."""

    def __init__(
        self, base: Base, head: Tensor, prompts: Sequence[tuple[int, ...]], noise: Tensor, temperature: float
    ) -> None:
        self._base = base
        self._head = head
        self._prompts = prompts
        self._noise = noise.to(base.device)
        self._temperature = temperature
        count, self._max_tokens = noise.shape
        self._eos = torch.tensor(sorted(base.eos_ids), device=base.device)
        self._rows = torch.arange(count, device=base.device)
        self._ids = torch.zeros((count, self._max_tokens), dtype=torch.long, device=base.device)
        self._logprobs = torch.zeros((count, self._max_tokens), device=base.device)
        self._states = torch.zeros((count, self._max_tokens, base.width), dtype=base.dtype, device=base.device)
        self._lengths = torch.full((count,), self._max_tokens, device=base.device)
        self._stopped = torch.zeros(count, dtype=torch.bool, device=base.device)

    def run(self) -> list[Sample]:
        """Prefill, decode until every row has ended, hand out."""
        cache, states = self._prefill()
        running = torch.ones_like(self._rows, dtype=torch.bool)
        for step in range(self._max_tokens):
            ids = self._choose(states, step)
            running = running & ~torch.isin(ids, self._eos)
            ended = self._rows[~running & ~self._stopped[self._rows]]
            self._stopped[ended] = True
            self._lengths[ended] = step + 1
            left = int(running.sum())
            if left == 0 or step + 1 == self._max_tokens:
                break
            if left <= COMPACT_BELOW * len(running):
                keep = running.nonzero()[:, 0]
                cache.keep(keep)
                self._rows, ids, running = self._rows[keep], ids[keep], running[keep]
            states = self._base.forward(ids[None], cache.positions(step)[None], cache)
        return self._hand_out()

    def _prefill(self) -> tuple[_Cache, Tensor]:
        packed = pack([_Prompt(prompt) for prompt in self._prompts], self._base.device)
        lengths = packed.prompt_mask.sum(1)
        cache = _Cache(self._base, packed, lengths, self._max_tokens)
        states = self._base.forward(packed.ids, packed.positions, _Filling(packed, cache))
        last = packed.full.gather(1, lengths[:, None] - 1)[:, 0]
        return cache, states[last]

    def _choose(self, states: Tensor, step: int) -> Tensor:
        """Draw a token a row by inverting the distribution function at the row's own uniform number."""
        scaled = frozen_linear(states.to(self._head.dtype), self._head).float()
        if self._temperature != 1.0:
            scaled /= self._temperature
        total = scaled.logsumexp(-1, keepdim=True)
        reached = (scaled - total).exp_().cumsum_(-1)
        target = self._noise[self._rows, step][:, None] * reached[:, -1:]
        ids = torch.searchsorted(reached, target, right=True).clamp_(max=scaled.shape[1] - 1)
        self._ids[self._rows, step] = ids[:, 0]
        self._logprobs[self._rows, step] = (scaled.gather(1, ids) - total)[:, 0]
        self._states[self._rows, step] = states.to(self._states.dtype)
        return ids[:, 0]

    def _hand_out(self) -> list[Sample]:
        samples = []
        for row, prompt in enumerate(self._prompts):
            length = int(self._lengths[row])
            samples.append(
                Sample(
                    prompt_ids=prompt,
                    response_ids=tuple(self._ids[row, :length].tolist()),
                    logprobs=tuple(self._logprobs[row, :length].tolist()),
                    finish_reason="stop" if bool(self._stopped[row]) else "length",
                    states=self._states[row, :length].clone(),
                )
            )
        return samples


class _Cache:
    """Keys and values of a batch: prompts aligned to the right, so that every row writes the same column."""

    def __init__(self, base: Base, packed: Packed, lengths: Tensor, max_tokens: int) -> None:
        layers, heads, width = base.attention_shape
        rows, self._start = packed.full.shape
        shape = (layers, rows, 2 * heads, self._start + max_tokens, width)
        self._store = torch.zeros(shape, dtype=base.dtype, device=base.device)
        self._heads = heads
        self._lengths = lengths
        self._column = self._start - 1
        shift = torch.arange(self._start, device=base.device)[None] - (self._start - lengths)[:, None]
        self._sources = packed.full.gather(1, shift.clamp(min=0))
        self._padding = shift < 0
        self._seen = torch.ones((rows, self._start + max_tokens), dtype=torch.bool, device=base.device)
        self._seen[:, : self._start] = ~self._padding

    def fill(self, layer: int, pairs: Tensor) -> None:
        """Take the prompts' keys and values, flat (N, 2 * heads, width)."""
        tokens, both, width = pairs.shape
        rows = gather_rows(pairs.reshape(tokens, both * width), self._sources)
        self._store[layer][:, :, : self._start] = rows.view(*self._sources.shape, both, width).transpose(1, 2)

    def positions(self, step: int) -> Tensor:
        """Place of the token chosen at `step`, a row; moves on to its column."""
        self._column = self._start + step
        return self._lengths + step

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; layer by layer, so that never two whole caches exist."""
        kept = self._store.new_empty((self._store.shape[0], len(rows), *self._store.shape[2:]))
        for layer in range(self._store.shape[0]):
            kept[layer] = self._store[layer].index_select(0, rows)
        self._store, self._lengths, self._seen = kept, self._lengths[rows], self._seen[rows]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        """Attention of one new token a row, (1, heads, R, d) as `packed_attention` has it."""
        store = self._store[layer]
        store[:, : self._heads, self._column] = key[0].transpose(0, 1)
        store[:, self._heads :, self._column] = value[0].transpose(0, 1)
        last = self._column + 1
        first = max(last - view.window, 0) if view.window else 0
        seen = store[:, :, first:last]
        mask = self._seen[:, None, None, first:last]
        q = query[0].transpose(0, 1).unsqueeze(2)
        out = grouped_attention(q, seen[:, : self._heads], seen[:, self._heads :], mask, view.scaling)
        return out.transpose(1, 2).transpose(0, 1)


class _Filling(TreeLayout):
    """A prompt pass that leaves its keys and values in a cache."""

    def __init__(self, packed: Packed, cache: _Cache) -> None:
        super().__init__(packed)
        self._cache = cache

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        """Attend as usual, and note keys and values."""
        self._cache.fill(layer, torch.cat((key[0], value[0])).transpose(0, 1))
        return super().attend(layer, query, key, value, view)
