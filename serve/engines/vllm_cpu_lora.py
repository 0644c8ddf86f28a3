"""LoRA for vLLM's CPU build, by matrix products. Installed in vLLM's worker process only (`vllm_cpu_worker`).

vLLM's own CPU kernels copy an adapter's weights once for every token of the batch, in every layer and for the whole
vocabulary; they treat a token without adapter (slot -1) as one of the last slot; and they fail on a batch in which a
prompt is scored beside other requests. Here the tokens of a batch are grouped by adapter once a step, and each group
gets two small products a layer; tokens of the base get none.

No torch is imported: all work is done by methods of the tensors that vLLM passes in.
"""

from __future__ import annotations

from typing import Any

Tensor = Any
Groups = list[tuple[int, Any]]
"""Adapter slots of a batch, each with its rows: a slice where they lie together, else a tensor of indices."""


def group_rows(slots: Tensor) -> Groups:
    """Rows of each adapter slot, in order of first appearance; slot -1 (the base) has none.

    Args:
        slots: adapter slot of each row, shape (T,), integer.
    """
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            rows.setdefault(slot, []).append(row)
    return [
        (slot, slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else slots.new_tensor(at))
        for slot, at in rows.items()
    ]


def add_product(y: Tensor, hidden: Tensor, b: Tensor, rows: Any) -> None:
    """y[rows] += hidden @ b.T in place.

    Args:
        y: shape (T, out); rows of it are written.
        hidden: shape (rows, rank).
        b: shape (at most out, rank).
    """
    y = y[:, : b.shape[0]]
    hidden = hidden.to(y.dtype)
    if isinstance(rows, slice):
        y[rows].addmm_(hidden, b.to(y.dtype).t())
    else:
        y.index_add_(0, rows, hidden @ b.to(y.dtype).t())


def shrink(x: Tensor, a: Tensor, rows: Any, scale: float) -> Tensor:
    """x[rows] @ a.T * scale, shape (rows, rank)."""
    hidden = x[rows].to(a.dtype) @ a.t()
    return hidden if scale == 1.0 else hidden * scale


def update_metadata(self: Any, mapping: Any, lora_index_to_id: Any, max_loras: int, vocab_size: int, **_: Any) -> None:
    """Once a step: vLLM's index tensors, and our groups of them."""
    self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
    if mapping.is_prefill:
        self._update_prefill_metadata(self.token_lora_indices)
    self.is_prefill = bool(mapping.is_prefill)
    self.token_groups = group_rows(self.token_lora_indices)
    self.sampler_groups = group_rows(self.sampler_indices)


def add_lora_linear(  # noqa: PLR0917  # vLLM's signature
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_: Any,
) -> None:
    """y += x @ A.T @ B.T * scale, each row with its adapter's A and B, slice by slice of y's columns."""
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for slot, rows in self.token_groups:
        offset = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            add_product(y[:, offset : offset + size], shrink(x, a[slot, 0], rows, scale), b[slot, 0], rows)
            offset += size


def add_lora_embedding(self: Any, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: Any, **__: Any) -> None:
    """y += x @ B.T, where x holds the rows that A's embedding gave."""
    for slot, rows in self.token_groups:
        add_product(y, x[rows], lora_b_stacked[slot, 0], rows)


def add_lora_logits(  # noqa: PLR0917  # vLLM's signature
    self: Any, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
) -> None:
    """The same for the output head; skipped for adapters that don't touch it, as hardly any does."""
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for slot, rows in self.sampler_groups:
        if touches(self, lora_b_stacked, slot):
            add_product(y, shrink(x, lora_a_stacked[slot, 0], rows, scale), lora_b_stacked[slot, 0], rows)


def touches(self: Any, lora_b_stacked: Tensor, slot: int) -> bool:
    """Whether a slot's B holds anything; remembered until the tensor is next written."""
    version = lora_b_stacked._version
    remembered = self.__dict__.setdefault("head_touched", {})
    if remembered.get(slot, (None,))[0] != version:
        remembered[slot] = (version, bool(lora_b_stacked[slot].any()))
    return bool(remembered[slot][1])


def install() -> None:
    """Put these into vLLM's CPU wrapper."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    for function in (update_metadata, add_lora_linear, add_lora_embedding, add_lora_logits):
        setattr(PunicaWrapperCPU, function.__name__, function)
