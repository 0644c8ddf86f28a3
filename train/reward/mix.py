"""The `mix` head: pooled layers, surface and prompt-meeting features under a regularised Bradley-Terry with ties.

A fitted head is one weight vector a block. Its score of an answer is the sum of its token rewards, exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.errors import OneSidedVotes, TrainingDiverged
from train.reward import features, tokens
from train.reward.features import Sequences, Vocabulary
from train.reward.foresight import Foresight
from train.reward.probe import Array, Outcomes, Rows
from train.reward.scales import Scaled, fit_with_scales
from train.reward.votes import Votes

FORMAT = 1
BAD_WEIGHT = 0.25
"""What it counts, of a vote, that each answer of a both_bad lost against the average answer."""
_SHAPE_FAMILIES = {
    "words": ("starts_word", "characters", "rank"),
    "sentences": ("sentence_end", "newline", "first_sentence", "sentences_so_far"),
    "marks": ("question", "exclamation", "digit", "punctuation", "capital"),
    "length": ("end_of_turn", "length"),
    "repetition": ("repeated",),
}


@dataclass(frozen=True, slots=True)
class MixHead:
    """A fitted head; keeps `TokenRewardModel`.

    Attributes:
        layers: hidden states that it reads.
        weights: by block, (k,): normalised score a unit of feature.
        means: by block, (k,): of the voted answers.
        scale: logits of preference a unit of score (Bradley-Terry's own scale over the normalised one).
        vocabulary: tables that the features need.
        base_fingerprint: of the base whose hidden states it was fitted on.
        metrics: the report's figures.
    """

    layers: tuple[int, ...]
    weights: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    scale: float
    vocabulary: Vocabulary
    base_fingerprint: str
    metrics: Mapping[str, float]

    @property
    def model_id(self) -> str:
        """`reward-` and 12 hex digits of its weights' sha256."""
        total = hashlib.sha256(self.base_fingerprint.encode())
        for name in sorted(self.weights):
            total.update(name.encode() + self.weights[name].numpy().tobytes() + self.means[name].numpy().tobytes())
        return f"reward-{total.hexdigest()[:12]}"

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        """One reward a token, (B, L), 0 off the answer: see `TokenRewardModel`."""
        assert token_ids.shape == prompt_mask.shape == response_mask.shape, "(B, L) everywhere"
        sequences = Sequences(hidden, token_ids, prompt_mask, response_mask)
        total = torch.zeros(token_ids.shape, dtype=torch.float32, device=token_ids.device)
        for block in features.blocks(sequences, self._tables(token_ids.device), self.layers):
            weight = self.weights[block.name].to(token_ids.device)
            offset = weight @ self.means[block.name].to(token_ids.device)
            total += block.pooling * (block.values.float() @ weight - offset)
        return total * response_mask

    @property
    def standing_width(self) -> int:
        """See `features.standing`."""
        return features.STANDING

    def standing(self, token_ids: Tensor, response_mask: Tensor) -> Tensor:
        """See `features.standing`."""
        return features.standing(token_ids, response_mask, self._tables(token_ids.device).surface)

    def foresight(self, embeddings: Tensor) -> Foresight:
        """The part of a token's reward that follows from token, place and prompt: see `TokenRewardModel`."""
        tables = self._tables(embeddings.device)
        weights = {name: weight.to(embeddings.device) for name, weight in self.weights.items()}
        classes = tables.surface[:, : len(tokens.COLUMNS)]
        even = classes @ weights["surface"][: len(tokens.COLUMNS)]
        if "state:0" in weights:
            even = even + embeddings.float() @ weights["state:0"]
        early = classes @ weights["opening"][: len(tokens.COLUMNS)]
        match, first = weights["meet"][-2:]
        return Foresight(torch.stack([even, early]), tables.rarity * match, tables.rarity * first)

    def scores(self, pooled: Mapping[str, Array]) -> Array:
        """Scores of answers from their pooled features, (answers,)."""
        parts = [
            (pooled[name] - mean.double().numpy()) @ self.weights[name].double().numpy()
            for name, mean in self.means.items()
        ]
        return np.asarray(np.sum(parts, axis=0))

    def save(self, folder: Path) -> None:
        """Write `reward.safetensors` and `reward.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight/{n}": t.contiguous() for n, t in self.weights.items()}
        tensors |= {f"mean/{n}": t.contiguous() for n, t in self.means.items()}
        tensors |= {"surface": self.vocabulary.surface, "rarity": self.vocabulary.rarity}
        save_file(tensors, folder / "reward.safetensors")
        record = {
            "format": FORMAT,
            "head": "mix",
            "model_id": self.model_id,
            "layers": list(self.layers),
            "scale": self.scale,
            "base_fingerprint": self.base_fingerprint,
            "metrics": dict(self.metrics),
        }
        (folder / "reward.json").write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> MixHead:
        """Read what `save` wrote."""
        record: dict[str, Any] = json.loads((folder / "reward.json").read_text())
        tensors = load_file(folder / "reward.safetensors")
        return cls(
            layers=tuple(record["layers"]),
            weights={n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")},
            means={n.removeprefix("mean/"): t for n, t in tensors.items() if n.startswith("mean/")},
            scale=float(record["scale"]),
            vocabulary=Vocabulary(tensors["surface"], tensors["rarity"]),
            base_fingerprint=record["base_fingerprint"],
            metrics=record["metrics"],
        )

    def _tables(self, device: torch.device) -> Vocabulary:
        return Vocabulary(self.vocabulary.surface.to(device), self.vocabulary.rarity.to(device))


@dataclass(frozen=True, slots=True)
class Weights:
    """A linear score over pooled features: `sum_b (x_b - mean_b) . weight_b`, in logits; `nu` is the tie weight."""

    weight: dict[str, Array]
    nu: float
    variance: dict[str, float]

    def differences(self, pooled: Mapping[str, Array], first: Rows, second: Rows) -> Array:
        """Score of the first minus score of the second answer, logits, (n,)."""
        parts = [(pooled[name][first] - pooled[name][second]) @ weight for name, weight in self.weight.items()]
        return np.asarray(np.sum(parts, axis=0))


def fit_weights(pooled: Mapping[str, Array], votes: Votes, rows: Rows) -> Weights:
    """Fit on the votes of `rows` (indices).

    Args:
        pooled: features of all answers by block, (answers, k).
        votes: all votes.
        rows: which of them to learn from.

    Raises:
        OneSidedVotes: no feature tells the answers apart.
        TrainingDiverged: a feature is not finite.
    """
    first, second, outcomes = _rows(votes, rows)
    used = np.unique(np.concatenate([votes.first[rows], votes.second[rows]]))
    families: dict[str, Array] = {}
    sources: dict[str, tuple[str, list[int] | slice, Array]] = {}
    for block, columns, name in _families(pooled):
        values = pooled[block][:, columns]
        if not np.isfinite(values[used]).all():
            raise TrainingDiverged(f"features of block {block} are not finite: the base model's weights are damaged")
        mean, spread = values[used].mean(axis=0), values[used].std(axis=0)
        inverse = np.where(spread > 1e-6 * max(float(spread.max()), 1e-9), 1 / np.maximum(spread, 1e-12), 0.0)
        average = np.vstack([values, mean])  # row -1: the average answer
        rows_of = (average[first] - average[second]) * inverse
        norm = float(np.sqrt((rows_of**2).sum(axis=1).mean()))
        if norm > 1e-9:
            families[name] = rows_of / norm
            sources[name] = (block, columns, inverse / norm)
    if not families:
        raise OneSidedVotes("every voted pair holds two answers with equal features; nothing can be learnt from them")
    scaled = fit_with_scales(families, outcomes)
    return _collapse(scaled, families, sources, pooled)


def _collapse(
    scaled: Scaled,
    families: Mapping[str, Array],
    sources: Mapping[str, tuple[str, list[int] | slice, Array]],
    pooled: Mapping[str, Array],
) -> Weights:
    """Add the families' weights up, a vector a block."""
    weight = {name: np.zeros(values.shape[1]) for name, values in pooled.items()}
    for name, rows in families.items():
        block, columns, unit = sources[name]
        weight[block][columns] += scaled.variance[name] * (rows.T @ scaled.fit.dual) * unit
    return Weights(weight, scaled.nu, scaled.variance)


def _families(pooled: Mapping[str, Array]) -> list[tuple[str, list[int] | slice, str]]:
    """Blocks, and for the shape blocks their parts too: (block, columns, name)."""
    names = (*tokens.COLUMNS, "first_sentence", "sentences_so_far", "repeated", "length")
    found: list[tuple[str, list[int] | slice, str]] = [(block, slice(None), block) for block in pooled]
    for block in sorted({"surface", "opening"} & pooled.keys()):
        for family, members in _SHAPE_FAMILIES.items():
            found.append((block, [names.index(member) for member in members], f"{block}.{family}"))
    return found


def _rows(votes: Votes, rows: Rows) -> tuple[Rows, Rows, Outcomes]:
    """Comparisons to learn from: the votes, then both_bad's answers as losers against the average answer (-1)."""
    bad = rows[votes.both_bad[rows]]
    losers = np.concatenate([votes.first[bad], votes.second[bad]])
    first = np.concatenate([votes.first[rows], np.full(len(losers), -1)])
    second = np.concatenate([votes.second[rows], losers])
    outcomes = Outcomes(
        tied=np.concatenate([votes.tied[rows], np.zeros(len(losers), dtype=bool)]),
        weight=np.concatenate([votes.weight[rows], np.tile(votes.weight[bad] * BAD_WEIGHT, 2)]),
        margin=np.concatenate([votes.margin[rows], np.zeros(len(losers))]),
    )
    return first, second, outcomes


def make_head(
    fitted: Weights,
    pooled: Mapping[str, Array],
    votes: Votes,
    *,
    layers: tuple[int, ...],
    vocabulary: Vocabulary,
    base_fingerprint: str,
    metrics: Mapping[str, float],
) -> MixHead:
    """A head whose scores have mean 0 and standard deviation 1 over the voted answers."""
    means = {name: values.mean(axis=0) for name, values in pooled.items()}
    raw = np.sum([(pooled[n] - means[n]) @ w for n, w in fitted.weight.items()], axis=0)
    spread = float(np.std(raw))
    if not np.isfinite(spread) or spread < 1e-9:
        raise OneSidedVotes("the votes tell no answer from another: every answer would get the same reward")
    return MixHead(
        layers=layers,
        weights={n: torch.from_numpy(w / spread).float() for n, w in fitted.weight.items()},
        means={n: torch.from_numpy(m).float() for n, m in means.items()},
        scale=spread,
        vocabulary=vocabulary,
        base_fingerprint=base_fingerprint,
        metrics=dict(metrics),
    )
