"""Sequences laid end to end without padding, each shared prefix once, and the attention that understands the layout.

A batch of prompts with answers is a tree: what all prompts begin with (the chat template's system turn), then each
distinct prompt, then the answers to it. Every token of the tree goes through the model's linear layers exactly once;
the attention gathers, for each branch, the keys of its ancestors and its own. Equal to running each sequence alone, up
to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

ATTENTION = "hustings_packed"
"""Name under which `install_attention` registers the attention with transformers."""


class Turn(Protocol):
    """Anything with a prompt and an answer in token ids."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt after the chat template."""

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The answer, its end-of-turn token included."""


@dataclass(frozen=True, slots=True)
class Block:
    """Branches of one level of the tree, padded to one shape.

    Attributes:
        queries: (S, Tq) indices of flat tokens; a short branch repeats its last token, so that no row is empty.
        keys: (S, Tk) indices of flat tokens; padding points at token 0 and is masked.
        mask: (S, 1, Tq, Tk), True where a query sees a key.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch in flat layout. N tokens, B answers of at most T tokens, whole sequences of at most L.

    Attributes:
        ids: (1, N).
        positions: (1, N), each token's place in its own sequence.
        blocks: the attention's levels; together they hold each token's query once (and repeats).
        place: (N,) where each token's result stands in the blocks' results laid end to end.
        full: (B, L) flat index of every token of each whole sequence, prompt first; padding points at token 0.
        token_ids: (B, L) ids of the same.
        prompt_mask: (B, L), True = real prompt token.
        sequence_response_mask: (B, L), True = real answer token.
        predictors: (B, T) flat index of the token whose output predicts answer token t.
        response_ids: (B, T).
        response_mask: (B, T), True = real answer token.
    """

    ids: Tensor
    positions: Tensor
    blocks: tuple[Block, ...]
    place: Tensor
    full: Tensor
    token_ids: Tensor
    prompt_mask: Tensor
    sequence_response_mask: Tensor
    predictors: Tensor
    response_ids: Tensor
    response_mask: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return self.ids.shape[1]


@dataclass(slots=True)
class _Branch:
    """A run of tokens and the flat indices of all its ancestors."""

    ancestors: list[int]
    own: list[int]


def pack(
    turns: Sequence[Turn], device: torch.device | str = "cpu", *, share: bool = True, run_last: bool = True
) -> Packed:
    """Lay out prompts with their answers (an answer may be empty: then only its prompt is run).

    Args:
        turns: at least one; none with an empty prompt.
        device: where the tensors go.
        share: run each common prefix once; False runs every sequence whole (to test against).
        run_last: run each answer's last token; its state predicts nothing, only a reward model reads it.
    """
    prompts = [turn.prompt_ids for turn in turns]
    assert prompts, "a batch needs at least one turn"
    assert all(prompts), "every turn needs a prompt"
    ids: list[int] = []
    positions: list[int] = []

    def lay(ancestors: list[int], tokens: Sequence[int]) -> _Branch:
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(len(ancestors), len(ancestors) + len(tokens)))
        return _Branch(ancestors, list(range(start, start + len(tokens))))

    trunk = lay([], _common_prefix(prompts) if share and len(set(prompts)) > 1 else ())
    stems: list[_Branch] = []
    stem_of: dict[tuple[int, ...], list[int]] = {}
    leaves: list[_Branch] = []
    for turn in turns:
        path = stem_of.get(turn.prompt_ids) if share else None
        if path is None:
            stem = lay(trunk.own, turn.prompt_ids[len(trunk.own) :])
            stems.append(stem)
            path = stem_of[turn.prompt_ids] = trunk.own + stem.own
        leaves.append(lay(path, turn.response_ids if run_last else turn.response_ids[:-1]))
    levels = [[trunk], stems, leaves]
    blocks = tuple(_block(filled, device) for level in levels if (filled := [b for b in level if b.own]))
    flat, places = torch.tensor(ids, device=device), torch.tensor(positions, device=device)
    return _assemble(turns, flat, places, leaves, blocks)


def groups(turns: Sequence[Turn], budget: int) -> list[list[int]]:
    """Split into even groups of at most `budget` tokens, counted as `pack` lays them (one turn may be longer alone).

    Answers to one prompt stay together while they fit, and prompts of a length lie side by side.

    Returns:
        Indices into `turns`; every index once.
    """
    order = sorted(range(len(turns)), key=lambda i: (len(turns[i].prompt_ids), turns[i].prompt_ids, i))
    distinct = {turn.prompt_ids for turn in turns}
    trunk = len(_common_prefix(list(distinct))) if len(distinct) > 1 else 0
    whole = trunk + sum(len(ids) - trunk for ids in distinct) + sum(len(turn.response_ids) for turn in turns)
    share = trunk + -(-(whole - trunk) // max(-(-whole // budget), 1))  # of each group, were they all as long
    result: list[list[int]] = []
    used, last = 0, None
    for index in order:
        turn = turns[index]
        stem = 0 if turn.prompt_ids == last else len(turn.prompt_ids) - trunk
        cost = stem + len(turn.response_ids)
        if not result or used + cost > budget or (stem and used >= share):
            result.append([])
            used, cost = trunk, len(turn.prompt_ids) - trunk + len(turn.response_ids)
        result[-1].append(index)
        used, last = used + cost, turn.prompt_ids
    return result


def gather_rows(flat: Tensor, index: Tensor) -> Tensor:
    """Rows of `flat` (N, D) at `index` (any shape): (*index.shape, D). Its backward adds rows up quickly on a CPU."""
    return nn.functional.embedding(index, flat)


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention over a `Packed` layout or a cache; transformers calls it in place of its own.

    Args:
        module: the attention layer; its index selects the cache's layer.
        query: (1, heads, N, d).
        key: (1, key-value heads, N, d).
        value: as key.
        attention_mask: unused, the layout has its own.
        kwargs: `layout`, a `Layout`; `scaling`; `sliding_window`.

    Returns:
        (1, N, heads, d) and no weights.
    """
    layout: Layout = kwargs["layout"]
    view = View(kwargs.get("scaling"), kwargs.get("sliding_window"))
    return layout.attend(int(module.layer_idx), query, key, value, view), None  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class View:
    """How a layer looks at what came before.

    Attributes:
        scaling: of the scores; None for 1 / sqrt(d).
        window: a token sees so many, itself among them (a sliding window); None for all.
    """

    scaling: float | None = None
    window: int | None = None


class Layout(Protocol):
    """How the tokens of a forward pass see each other."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        """Attend; shapes as in `packed_attention`."""


class TreeLayout:
    """The layout of a `Packed` batch; hands each layer's keys and values to `keep` if there is one."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._masks: dict[int | None, list[Tensor]] = {None: [block.mask for block in packed.blocks]}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        """Attention block by block: branches see their ancestors and, causally, themselves."""
        heads, tokens, width = query.shape[1:]
        kv_heads = key.shape[1]
        queries = query[0].transpose(0, 1).reshape(tokens, heads * width)
        pairs = torch.cat((key[0], value[0])).transpose(0, 1).reshape(tokens, 2 * kv_heads * width)
        results = []
        for block, mask in zip(self._packed.blocks, self._within(view.window), strict=True):
            rows, length = block.queries.shape
            q = gather_rows(queries, block.queries).view(rows, length, heads, width).transpose(1, 2)
            kv = gather_rows(pairs, block.keys).view(rows, -1, 2 * kv_heads, width).transpose(1, 2)
            out = grouped_attention(q, kv[:, :kv_heads], kv[:, kv_heads:], mask, view.scaling)
            results.append(out.transpose(1, 2).reshape(rows * length, heads * width))
        joined = torch.cat(results) if len(results) > 1 else results[0]
        return gather_rows(joined, self._packed.place).view(1, tokens, heads, width)

    def _within(self, window: int | None) -> list[Tensor]:
        """The blocks' masks, made once, for layers that see only so many tokens back."""
        if window not in self._masks:
            assert window is not None
            self._masks[window] = [_windowed(block.mask, window) for block in self._packed.blocks]
        return self._masks[window]


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Grouped-query attention without copying keys: the heads of a group become rows of one query.

    Args:
        query: (S, heads, Tq, d).
        key: (S, kv heads, Tk, d).
        value: as key.
        mask: (S, 1, Tq, Tk).
        scaling: of the scores; None for 1 / sqrt(d).

    Returns:
        (S, heads, Tq, d).
    """
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(rows, kv_heads, (heads // kv_heads) * length, width)
    spread = mask.expand(rows, heads // kv_heads, length, mask.shape[-1]).reshape(rows, 1, -1, mask.shape[-1])
    out = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=spread, scale=scaling)
    return out.view(rows, heads, length, width)


def install_attention() -> None:
    """Register the attention with transformers; safe to call again."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first, last = min(prompts), max(prompts)
    differ = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differ, min(len(first), len(last)))]


def _block(branches: list[_Branch], device: torch.device | str) -> Block:
    length = max(len(branch.own) for branch in branches)
    reach = max(len(branch.ancestors) + len(branch.own) for branch in branches)
    queries = [branch.own + branch.own[-1:] * (length - len(branch.own)) for branch in branches]
    keys = [(branch.ancestors + branch.own) for branch in branches]
    seen = torch.tensor(
        [[len(b.ancestors) + min(t, len(b.own) - 1) for t in range(length)] for b in branches], device=device
    )
    mask = torch.arange(reach, device=device)[None, None, :] <= seen[:, :, None]
    return Block(torch.tensor(queries, device=device), _rectangle(keys, reach, device), mask.unsqueeze(1))


def _assemble(
    turns: Sequence[Turn], flat: Tensor, positions: Tensor, leaves: list[_Branch], blocks: tuple[Block, ...]
) -> Packed:
    device = flat.device
    lengths = torch.tensor([len(turn.response_ids) for turn in turns], device=device)[:, None]
    width = int(lengths.max())
    reach = max(len(leaf.ancestors) + len(leaf.own) for leaf in leaves)
    full = _rectangle([leaf.ancestors + leaf.own for leaf in leaves], reach, device)
    prompts = torch.tensor([len(leaf.ancestors) for leaf in leaves], device=device)[:, None]
    answers = torch.tensor([len(leaf.own) for leaf in leaves], device=device)[:, None]
    columns = torch.arange(reach, device=device)[None]
    return Packed(
        ids=flat[None],
        positions=positions[None],
        blocks=blocks,
        place=_places(blocks, len(flat)),
        full=full,
        token_ids=flat[full],
        prompt_mask=columns < prompts,
        sequence_response_mask=(columns >= prompts) & (columns < prompts + answers),
        predictors=_rectangle(
            [
                (leaf.ancestors[-1:] + leaf.own)[: len(turn.response_ids)]
                for leaf, turn in zip(leaves, turns, strict=True)
            ],
            width,
            device,
        ),
        response_ids=_rectangle([list(turn.response_ids) for turn in turns], width, device),
        response_mask=torch.arange(width, device=device)[None] < lengths,
    )


def _windowed(mask: Tensor, window: int) -> Tensor:
    """A block's mask without the keys further back than the window. Keys stand in their sequence's order."""
    if window >= mask.shape[-1]:
        return mask
    own = mask.sum(-1, keepdim=True) - 1  # a query sees all up to its own place
    return mask & (torch.arange(mask.shape[-1], device=mask.device) > own - window)


def _places(blocks: tuple[Block, ...], tokens: int) -> Tensor:
    """Inverse of the blocks' queries; of a repeated token any place holds the same result, the first is taken."""
    asked = torch.cat([block.queries.flatten() for block in blocks]).tolist()
    place = [-1] * tokens
    for at, token in enumerate(asked):
        if place[token] < 0:
            place[token] = at
    return torch.tensor(place, device=blocks[0].queries.device)


def _rectangle(rows: list[list[int]], width: int, device: torch.device | str) -> Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long, device=device).view(
        len(rows), width
    )
