"""One frozen base model, and the passes of training over it: each computes once what several roles need.

Policy and critic are LoRA adapters; the reference is the base with adapters off. Nothing here is ever padded: see
`train.packing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feedback.fingerprint import ModelFolderError, base_fingerprint
from train.blocks import spare
from train.config import LoraSettings
from train.errors import ModelUnusable
from train.heads import RowLoss, score_tokens
from train.lora import AdapterSet
from train.packing import Layout, Packed, TreeLayout, Turn, gather_rows, groups, pack
from train.recompute import recomputed
from train.reward.foresight import Tilt
from train.vetting import read_model, unusable, vetted

POLICY = "policy"
CRITIC = "critic"
Tuning = Literal["lora", "full"]


@dataclass(frozen=True, slots=True)
class ReferenceChunk:
    """What one adapters-off pass tells of some sequences.

    Attributes:
        rows: indices into the sequences that were asked for.
        packed: their layout; its masks say what is what below.
        logprobs: (B, T) of the answer's tokens under the base.
        states: (B, T, H), the base's last hidden state in which each token is chosen; empty without log-probs.
        hidden: asked layer to (B, L, H), whole sequences, prompt first.
    """

    rows: list[int]
    packed: Packed
    logprobs: Tensor
    states: Tensor
    hidden: dict[int, Tensor]


@dataclass(frozen=True, slots=True)
class PolicyPass:
    """What one pass of the policy tells.

    Attributes:
        logprobs: (B, T) of the answer's tokens.
        entropy: (B, T).
        kl: (B, T), to the reference over the whole vocabulary; 0 where none was given.
        foreseen: (B, T), the tilt's reward of the answer's tokens; no gradient.
        expected: (B, T), its mean over the vocabulary under the policy; both 0 without a tilt.
        states: (B, T, H), the last hidden state in which each token was chosen (after the final norm).
        mask: (B, T).
        loss: (), what was asked for, which alone carries a gradient then; else 0.
    """

    logprobs: Tensor
    entropy: Tensor
    kl: Tensor
    foreseen: Tensor
    expected: Tensor
    states: Tensor
    mask: Tensor
    loss: Tensor


class Base:
    """A frozen causal language model with LoRA adapters.

    Attributes:
        path: the folder that it was read from.
        adapters: the LoRA layers.
        fingerprint: sha256 of architecture and weights.
        gradient_checkpointing: whether passes with a gradient keep only what enters each block.
    """

    def __init__(
        self,
        model: Any,
        path: Path,
        settings: LoraSettings,
        fingerprint: str,
        *,
        tuning: Tuning = "lora",
        sharded: bool = False,
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.gradient_checkpointing = False
        self._model = model
        model.requires_grad_(False)
        model.eval()
        self.adapters = (
            AdapterSet(model.model, settings) if tuning == "lora" else _full_policy(model, settings, sharded)
        )
        spare(model)
        self.adapters.layers = {f"model.{path}": layer for path, layer in self.adapters.layers.items()}

    @classmethod
    def load(
        cls,
        path: Path | str,
        settings: LoraSettings | None = None,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        tuning: Tuning = "lora",
        sharded: bool = False,
    ) -> Base:
        """Read a Hugging Face folder, and find out whether our passes compute it rightly (`train.vetting`).

        Args:
            path: the folder.
            settings: of the adapters.
            device: "cpu" or "cuda".
            dtype: of the base's weights; by default float32 on a CPU and bfloat16 on a GPU. Adapters are float32.
            tuning: whether the policy is an adapter or a whole model (`train.full`).
            sharded: spread a whole policy over the processes of the team.

        Raises:
            ModelUnusable: it is no model that the trainer can read, or one that it would compute wrongly.
        """
        folder = Path(path)
        model = read_model(folder, dtype or ("float32" if device.startswith("cpu") else "bfloat16"))
        model.to(device)
        lora, fingerprint = settings or LoraSettings(), fingerprint_of(folder)
        make = partial(cls, model, folder, lora, fingerprint, tuning=tuning, sharded=sharded)
        return vetted(model, folder, make, _reference_logprobs)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.reference_head.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return self.reference_head.dtype

    @property
    def depth(self) -> int:
        """Number of blocks; hidden states go from 0 (embeddings) to this."""
        return int(self._model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self._model.config.hidden_size)

    @property
    def head(self) -> Tensor:
        """Weight of the language-model head, (V, H), of the role in use."""
        weight: Tensor = (self.adapters.replacement or self._model).lm_head.weight
        return weight

    @property
    def reference_head(self) -> Tensor:
        """Weight of the frozen base's language-model head, (V, H)."""
        weight: Tensor = self._model.lm_head.weight
        return weight

    @property
    def embeddings(self) -> Tensor:
        """What each token looks like on its way in, (V, H): hidden state 0."""
        weight: Tensor = self._model.model.embed_tokens.weight
        return self._as_entering(weight)

    def _as_entering(self, rows: Tensor) -> Tensor:
        scale = getattr(self._model.model.embed_tokens, "embed_scale", None)  # Gemma 3's
        return rows if scale is None else rows * torch.as_tensor(scale, dtype=rows.dtype, device=rows.device)

    @property
    def attention_shape(self) -> tuple[int, int, int]:
        """Layers, key-value heads, width of a head: the shape of a cache."""
        config = self._model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return self.depth, int(config.num_key_value_heads), int(width)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer: those of the model's generation settings and of its configuration."""
        found: set[int] = set()
        for source in (self._model.generation_config, self._model.config):
            ids = getattr(source, "eos_token_id", None)
            found.update([ids] if isinstance(ids, int) else ids or [])
        return frozenset(found)

    def forward(self, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Run tokens (1, N) under a layout with the active adapter; final hidden states (N, H), after the last norm."""
        model = self.adapters.replacement or self._model
        sparing = self.gradient_checkpointing and torch.is_grad_enabled()
        with recomputed(model.model.layers, self.adapters) if sparing else nullcontext():
            output = model.model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
        states: Tensor = output.last_hidden_state[0]
        return states

    @contextmanager
    def watching(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect hidden states (N, H) of the layers while a forward pass runs inside.

        0 is the embedding, i the output of block i; the last is taken after the final norm, as in transformers.
        """
        caught: dict[int, Tensor] = {}
        inner = self._model.model

        def note(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                caught[layer] = (output[0] if isinstance(output, tuple) else output)[0]

            return hook

        handles = []
        for layer in layers:
            if not 0 <= layer <= self.depth:
                raise ModelUnusable(f"layer {layer} asked for, the base has 0 to {self.depth}")
            source = (
                inner.embed_tokens if layer == 0 else inner.norm if layer == self.depth else inner.layers[layer - 1]
            )
            handles.append(source.register_forward_hook(note(layer)))
        try:
            yield caught
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _only(base: Base, depth: int | None) -> Iterator[None]:
    """Run no block above `depth` inside: nobody reads what they would say."""
    inner = base._model.model
    whole = inner.layers
    try:
        if depth is not None:
            inner.layers = whole[:depth]
        yield
    finally:
        inner.layers = whole


def reference_pass(
    base: Base,
    turns: Sequence[Turn],
    layers: Sequence[int] = (),
    *,
    temperature: float = 1.0,
    budget: int = 2048,
    logprobs: bool = True,
) -> Iterator[ReferenceChunk]:
    """Run sequences through the bare base once: log-probs of the answers and hidden states of `layers`.

    Args:
        base: the model; adapters are off for the pass.
        turns: prompts with answers.
        layers: hidden states that the reward model reads.
        temperature: of sampling.
        budget: tokens a forward pass.
        logprobs: False leaves out the language-model head and every block above `layers` (log-probs are then zeros).

    Yields:
        Chunks that together hold every sequence once. Only one chunk's hidden states exist at a time.
    """
    depth = None if logprobs else max(layers, default=0)
    for rows in groups(turns, budget):
        packed = pack([turns[row] for row in rows], base.device)
        mask = packed.response_mask
        with torch.no_grad(), base.adapters.using(None), base.watching(layers) as caught, _only(base, depth):
            states = base.forward(packed.ids, packed.positions, TreeLayout(packed))
            scores, last = torch.zeros(mask.shape, device=base.device), torch.zeros(0, device=base.device)
            if logprobs:
                chosen = states[packed.predictors[mask]]
                scores = _spread(score_tokens(chosen, base.head, packed.response_ids[mask], temperature).logprobs, mask)
                last = _spread(chosen, mask)
            hidden = {layer: gather_rows(caught[layer], packed.full) for layer in layers}
        yield ReferenceChunk(rows, packed, scores, last, hidden)


def policy_pass(
    base: Base,
    turns: Sequence[Turn],
    *,
    adapter: str | None = POLICY,
    temperature: float = 1.0,
    entropy_grad: bool = False,
    reference: Tensor | None = None,
    tilt: Tilt | None = None,
    loss: RowLoss | None = None,
) -> PolicyPass:
    """Run sequences with an adapter in one forward pass; gradients flow unless the caller has switched them off.

    Args:
        base: with the adapter.
        turns: prompts with answers.
        adapter: which one.
        temperature: of sampling.
        entropy_grad: let gradients flow through the entropy.
        reference: (B, >=T, H), the reference's states (`ReferenceChunk.states`), for the KL.
        tilt: rewards of every candidate token at the answers' places.
        loss: of the answers' tokens (their scores in order, one answer after another): cheaper than from the result.
    """
    packed = pack(turns, base.device, run_last=False)
    mask = packed.response_mask
    wanted = None if reference is None else reference[:, : mask.shape[1]][mask]

    def work() -> tuple[Tensor, ...]:
        states = base.forward(packed.ids, packed.positions, TreeLayout(packed))
        chosen = gather_rows(states, packed.predictors[mask])
        scores = score_tokens(
            chosen,
            base.head,
            packed.response_ids[mask],
            temperature,
            entropy_grad=entropy_grad,
            reference=wanted,
            reference_weight=base.reference_head,
            tilt=tilt,
            loss=loss,
        )
        return scores.logprobs, scores.entropy, scores.kl, scores.foreseen, scores.expected, chosen, scores.loss

    with base.adapters.using(adapter):
        *rows, total = base.adapters.within(work)
    logprobs, entropy, kl, foreseen, expected, chosen = (_spread(x, mask) for x in rows)
    return PolicyPass(logprobs, entropy, kl, foreseen, expected, chosen, mask, total)


def states_pass(base: Base, turns: Sequence[Turn], *, adapter: str | None) -> tuple[Tensor, Tensor]:
    """States in which each token was chosen, (B, T, H), and the mask (B, T): what a critic with an adapter reads."""
    packed = pack(turns, base.device, run_last=False)
    mask = packed.response_mask
    with base.adapters.using(adapter):
        states = base.forward(packed.ids, packed.positions, TreeLayout(packed))
    return _spread(gather_rows(states, packed.predictors[mask]), mask), mask


def _reference_logprobs(base: Base, turns: Sequence[Turn]) -> list[Tensor]:
    """Log-probs (T,) of each answer under the bare base, whose way in must be the one that rewards are foreseen by."""
    found: dict[int, Tensor] = {}
    entry = base._model.model.embed_tokens.weight
    for chunk in reference_pass(base, turns, (0,)):
        real = chunk.packed.prompt_mask | chunk.packed.sequence_response_mask
        if not torch.allclose(chunk.hidden[0][real], base._as_entering(entry[chunk.packed.token_ids[real]])):
            raise unusable(base.path, "changes its embeddings on their way in as the trainer does not know")
        for at, row in enumerate(chunk.rows):
            found[row] = chunk.logprobs[at][chunk.packed.response_mask[at]]
    _ = base.attention_shape  # as the sampler's cache wants it
    return [found[row] for row in range(len(turns))]


def _full_policy(model: Any, settings: LoraSettings, sharded: bool) -> AdapterSet:
    from train.full import FullPolicy

    return FullPolicy(model, settings, sharded=sharded)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Lay values (M, ...) of the real tokens into (B, T, ...), zero elsewhere; the gradient goes back as it came."""
    empty = values.new_zeros((*mask.shape, *values.shape[1:]))
    return empty.masked_scatter(mask.view(*mask.shape, *([1] * (values.dim() - 1))).expand_as(empty), values)


def fingerprint_of(folder: Path) -> str:
    """The base's fingerprint, as serving computes it too.

    Raises:
        ModelUnusable: the folder has no readable config.json.
    """
    try:
        return base_fingerprint(folder)
    except ModelFolderError as error:
        raise ModelUnusable(str(error)) from error
