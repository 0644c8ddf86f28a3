"""Features of an answer as weighted means over its tokens, so that any linear score splits exactly over the tokens.

A *block* is a family of columns with one way of pooling. Answer features are `sum_t c_t phi_t` with weights `c` that
add up to 1 over the answer, hence `w.(features - mean) = sum_t c_t w.(phi_t - mean)`: token t's share of the score.

Blocks, for the layers `l` that the head reads:

- `state:l`    hidden states, pooled evenly: what is said.
- `surface`    token classes, how words sound, and running state (first sentence, repetition, length), pooled evenly:
               its shape.
- `opening`    the same, pooled with weights `exp(-t / 8)`: how it begins.
- `meet`       how a token meets the prompt: its likest prompt token and the prompt's mean, per layer, weighted by how
               rare the prompt's tokens are among prompts: whether it answers what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from train.reward import tokens

EARLY_TOKENS = 8.0
LENGTH_UNIT = 64.0
STANDING = 9 + tokens.PLEASANT
"""Columns of `standing`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tables over the vocabulary.

    Attributes:
        surface: `tokens.surface_table`, (V, columns + 1).
        rarity: in 0 to 1, how rarely a token occurs in prompts, (V,); 1 for one never seen.
    """

    surface: Tensor
    rarity: Tensor


@dataclass(frozen=True, slots=True)
class Sequences:
    """A batch of prompts with their answers, padded on either side.

    Attributes:
        hidden: states of the bare base by layer, (B, L, d).
        token_ids: (B, L).
        prompt_mask: (B, L), True = real prompt token.
        response_mask: (B, L), True = real answer token.
    """

    hidden: Mapping[int, Tensor]
    token_ids: Tensor
    prompt_mask: Tensor
    response_mask: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One family of columns: `values` (B, L, k) pooled with `pooling` (B, L), which adds up to 1 over an answer."""

    name: str
    values: Tensor
    pooling: Tensor


def block_names(layers: Sequence[int]) -> tuple[str, ...]:
    """Names of all blocks, in the order of `blocks`."""
    return (*(f"state:{layer}" for layer in layers), "surface", "opening", "meet")


def blocks(sequences: Sequences, vocabulary: Vocabulary, layers: Sequence[int]) -> Iterator[Block]:
    """Every block of a batch; big ones are views of the hidden states, nothing is copied."""
    even, early = pooling_weights(sequences.response_mask)
    for layer in layers:
        yield Block(f"state:{layer}", sequences.hidden[layer], even)
    shape = surface(sequences.token_ids, sequences.response_mask, vocabulary.surface)
    yield Block("surface", shape, even)
    yield Block("opening", shape, early)
    yield Block("meet", meeting(sequences, vocabulary.rarity, layers), even)


def pooling_weights(response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Even weights and weights that fade with the position in the answer, each (B, L) and adding up to 1."""
    mask = response_mask.float()
    even = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    fading = torch.exp(-position / EARLY_TOKENS) * mask
    return even, fading / fading.sum(dim=1, keepdim=True).clamp(min=1e-12)


def surface(token_ids: Tensor, response_mask: Tensor, table: Tensor) -> Tensor:
    """Token classes and running state, (B, L, columns): see `tokens.COLUMNS`, then the four named below."""
    mask = response_mask.float()
    rows = table[token_ids] * mask.unsqueeze(-1)
    ends = sentence_ends(rows)
    ended_before = ends.cumsum(dim=1) - ends
    first_sentence = (ended_before == 0).float() * mask
    sentences_so_far = torch.log1p(ended_before) * mask
    length = mask.sum(dim=1, keepdim=True).expand_as(mask) / LENGTH_UNIT * mask
    running = torch.stack([first_sentence, sentences_so_far, repeated(token_ids, response_mask), length], dim=-1)
    return torch.cat([rows[..., : len(tokens.COLUMNS)], running], dim=-1)


def sentence_ends(rows: Tensor) -> Tensor:
    """1 where a sentence ends, (B, L), for rows (B, L, columns + 1) of the surface table that are 0 off the answer.

    Only what holds a letter is a sentence: neither a list's "1." nor dots nor an empty line ends one. Were they to
    count, a policy asked for a short first sentence would number its answers (ADR 0097).
    """
    stops = (rows[..., tokens.SENTENCE_END] + rows[..., tokens.NEWLINE] + rows[..., tokens.END_OF_TURN]) > 0
    letters = rows[..., tokens.ALPHABETIC].cumsum(dim=1)
    at_stop = (letters * stops).cummax(dim=1).values  # a stop after no letters holds what the one before it held
    at_stop_before = torch.cat([torch.zeros_like(at_stop[:, :1]), at_stop[:, :-1]], dim=1)
    return (stops & (letters > at_stop_before)).float()


def standing(token_ids: Tensor, response_mask: Tensor, table: Tensor) -> Tensor:
    """How an answer stands before each of its tokens is chosen, (B, L, STANDING), for a critic.

    Whether the first sentence still runs, how many have ended, how far along the answer is (linearly, fading as
    `opening` does, and per token so far), what these mean together; and the class of the token before.
    """
    classes = len(tokens.COLUMNS)
    shape = surface(token_ids, response_mask, table)
    mask = response_mask.float()
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    along, fading, share = position / LENGTH_UNIT, torch.exp(-position / EARLY_TOKENS), 1 / (1 + position)
    first, ended = shape[..., classes], shape[..., classes + 1]
    now = torch.stack([first, ended, along, fading, share, first * fading, first * along, ended * along], dim=-1)
    before = torch.cat([shape[..., : tokens.PLEASANT], shape[..., classes + 2 : classes + 3]], dim=-1)
    before = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], dim=1)
    return torch.cat([now, before], dim=-1) * mask.unsqueeze(-1)


def repeated(token_ids: Tensor, response_mask: Tensor) -> Tensor:
    """1 where the answer has had the same token before, (B, L)."""
    same = token_ids.unsqueeze(2) == token_ids.unsqueeze(1)
    both = response_mask.unsqueeze(2) & response_mask.unsqueeze(1)
    return (same & both).tril(diagonal=-1).any(dim=2).float()


def meeting(sequences: Sequences, rarity: Tensor, layers: Sequence[int]) -> Tensor:
    """A token's likeness to the prompt, (B, L, 2 per layer + 2): best and mean per layer, exact match, first such."""
    weight = rarity[sequences.token_ids] * sequences.prompt_mask
    columns = []
    for layer in layers:
        states = sequences.hidden[layer]
        real = (sequences.prompt_mask | sequences.response_mask).unsqueeze(-1)
        centre = (states * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
        unit = functional.normalize((states - centre).float() * real, dim=-1)
        likeness = unit @ unit.transpose(1, 2)
        columns.append((likeness * weight.unsqueeze(1)).amax(dim=2))
        mean = (likeness * weight.unsqueeze(1)).sum(dim=2) / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
        columns.append(mean)
    exact = (sequences.token_ids.unsqueeze(2) == sequences.token_ids.unsqueeze(1)) * weight.unsqueeze(1)
    match = exact.amax(dim=2)
    columns.append(match)
    columns.append(match * (1 - repeated(sequences.token_ids, sequences.response_mask)))
    return torch.stack(columns, dim=-1) * sequences.response_mask.unsqueeze(-1)


def pool(block: Block) -> Tensor:
    """Answer features of a block, (B, k)."""
    return torch.einsum("bl,blk->bk", block.pooling, block.values.float())


def prompt_rarity(prompts: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """How rarely each token occurs in prompts: `1 - log(1 + n_v) / log(1 + N)`, (V,)."""
    counts = torch.zeros(vocabulary)
    for prompt in prompts:
        counts[torch.tensor(sorted(set(prompt)), dtype=torch.long)] += 1
    total = torch.log1p(torch.tensor(float(max(len(prompts), 1))))
    return 1 - torch.log1p(counts) / total
