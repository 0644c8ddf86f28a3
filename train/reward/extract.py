"""Features of voted answers from the frozen base, computed once ever and kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from train.base import Base, reference_pass
from train.files import sync
from train.reward import features, tokens
from train.reward.features import Sequences, Vocabulary
from train.reward.probe import Array
from train.reward.votes import Answer
from train.team import ALONE, Team

FEATURES_VERSION = 5
"""Raised when the meaning of a block changes: older cache files are then left alone and a new one is begun."""
Progress = Callable[[int, int], None]
Stored = NDArray[Any]


def layers_of(depth: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Layer numbers at shares of the depth, rising, each once: (0, 0.27, 0.53) of 30 is (0, 8, 16)."""
    return tuple(sorted({min(depth, round(share * depth)) for share in shares}))


def vocabulary_for(folder: Path, tokenizer: object, size: int, prompts: Sequence[tuple[int, ...]]) -> Vocabulary:
    """The tables for features, kept in `folder` until there are twice as many prompts, or another tokenizer.

    How rare a token is among prompts drifts with every chat; were it recomputed each cycle, no cached feature would
    stay valid.
    """
    path = folder / "vocabulary.safetensors"
    distinct = sorted(set(prompts))
    if path.is_file():
        kept = load_file(path)
        surface = torch.from_numpy(kept["surface"])
        same = len(kept["rarity"]) == size and tokens.is_surface_of(surface, tokenizer)
        if same and len(distinct) < 2 * int(kept["prompts"][0]):
            return Vocabulary(surface, torch.from_numpy(kept["rarity"]))
    made = Vocabulary(tokens.surface_table(tokenizer, size), features.prompt_rarity(distinct, size))
    arrays = {"surface": made.surface.numpy(), "rarity": made.rarity.numpy(), "prompts": np.array([len(distinct)])}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(path, arrays)
    return made


@dataclass(frozen=True, slots=True)
class FeatureReader:
    """Reads features through a cache file.

    Attributes:
        base: the frozen model.
        layers: hidden states to pool.
        vocabulary: tables.
        folder: where the cache files lie.
        budget: tokens of a forward pass.
        team: processes that share the work.
    """

    base: Base
    layers: tuple[int, ...]
    vocabulary: Vocabulary
    folder: Path
    budget: int
    team: Team = ALONE

    @property
    def path(self) -> Path:
        """The cache file of this base, these layers, these tables."""
        total = hashlib.sha256(f"{FEATURES_VERSION} {self.base.fingerprint} {self.layers}".encode())
        total.update(self.vocabulary.rarity.numpy().tobytes())
        total.update(self.vocabulary.surface.numpy().tobytes())
        return self.folder / f"features-{total.hexdigest()[:16]}.safetensors"

    def read(self, answers: Sequence[Answer], progress: Progress = lambda done, total: None) -> dict[str, Array]:
        """Pooled features by block, (answers, k) float64; only answers never seen before go through the base."""
        cached = load_file(self.path) if self.path.is_file() else {}
        known = _keys(cached)
        missing = [answer for answer in answers if answer.key not in known]
        if missing:
            fresh = self._compute_together(missing, progress)
            fresh["keys"] = np.array([list(bytes.fromhex(a.key)) for a in missing], dtype=np.uint8)
            cached = {n: _joined(n, cached[n], v) if cached else v for n, v in fresh.items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.path, cached)
            known = _keys(cached)
        rows = np.array([known[answer.key] for answer in answers])
        return {name: cached[name][rows].astype(np.float64) for name in features.block_names(self.layers)}

    def token_covariance(self) -> dict[str, Array]:
        """Covariance of the hidden states of all answer tokens ever read, by block, (k, k) each."""
        cached = load_file(self.path)
        return {f"state:{layer}": covariance(cached[f"moment:{layer}"]) for layer in self._turned}

    @property
    def _turned(self) -> tuple[int, ...]:
        """Layers whose tokens' covariance is kept: the lowest and the deepest."""
        return tuple(sorted({self.layers[0], self.layers[-1]}))

    def _compute_together(self, answers: Sequence[Answer], progress: Progress) -> dict[str, Stored]:
        """The lead's call: hand round what is to be read, and read one's own share."""
        tables = {"surface": self.vocabulary.surface, "rarity": self.vocabulary.rarity}
        self.team.tell(
            {
                "do": "features",
                "layers": self.layers,
                "budget": self.budget,
                "answers": [[answer.prompt_ids, answer.response_ids] for answer in answers],
                "tables": {name: [list(x.shape), str(x.dtype).removeprefix("torch.")] for name, x in tables.items()},
            }
        )
        for table in tables.values():
            self.team.hand_out(table)
        return self.compute_share(answers, progress)

    def compute_share(
        self, answers: Sequence[Answer], progress: Progress = lambda done, total: None
    ) -> dict[str, Stored]:
        """Features of all answers, of which this process reads its share; every process of the team must ask."""
        part = self.team.share(len(answers))
        mine = answers[part]
        if self.team.size == 1:
            return self._compute(mine, progress)
        found = self.team.agree(lambda: self._compute(mine or answers[:1], progress))
        joined = {}
        for name, rows in found.items():
            if name.startswith("moment:"):
                joined[name] = self.team.sum(torch.from_numpy(rows) * float(bool(mine))).numpy()
            else:
                joined[name] = self.team.gather(torch.from_numpy(rows)[: len(mine)], len(answers)).numpy()
        return joined

    def _compute(self, answers: Sequence[Answer], progress: Progress) -> dict[str, Stored]:
        found: dict[str, list[Tensor | None]] = {n: [None] * len(answers) for n in features.block_names(self.layers)}
        moments = {layer: torch.zeros((), dtype=torch.float64) for layer in self._turned}
        done = 0
        for chunk in reference_pass(self.base, answers, self.layers, budget=self.budget, logprobs=False):
            packed = chunk.packed
            batch = Sequences(chunk.hidden, packed.token_ids, packed.prompt_mask, packed.sequence_response_mask)
            for block in features.blocks(batch, self.vocabulary, self.layers):
                for row, values in zip(chunk.rows, features.pool(block).cpu(), strict=True):
                    found[block.name][row] = values
            for layer in self._turned:
                moments[layer] = moments[layer] + moment(chunk.hidden[layer][packed.sequence_response_mask]).cpu()
            done += len(chunk.rows)
            progress(done, len(answers))
        kept = {name: torch.stack([v for v in rows if v is not None]).numpy() for name, rows in found.items()}
        return kept | {f"moment:{layer}": total.numpy() for layer, total in moments.items()}


def moment(states: Tensor) -> Tensor:
    """Sums of 1, x and x x' over tokens in one matrix, (k + 1, k + 1) float64, for states (tokens, k): they add up."""
    rows = torch.cat([states.double(), states.new_ones(len(states), 1, dtype=torch.float64)], dim=1)
    return rows.T @ rows


def covariance(total: Stored) -> Array:
    """Covariance of the tokens whose `moment`s were added up, (k, k)."""
    wide = total.astype(np.float64)
    count = wide[-1, -1]
    mean = wide[-1, :-1] / count
    return np.asarray(wide[:-1, :-1] / count - np.outer(mean, mean))


def _joined(name: str, old: Stored, new: Stored) -> Stored:
    return old + new if name.startswith("moment:") else np.concatenate([old, new])


def _keys(cached: Mapping[str, Stored]) -> dict[str, int]:
    return {bytes(key).hex(): row for row, key in enumerate(cached["keys"])} if cached else {}


def _replace(path: Path, arrays: dict[str, Stored]) -> None:
    """Write beside, sync, rename: a killed write leaves the old file."""
    beside = path.with_suffix(".tmp")
    try:
        save_file(arrays, beside)
        sync(beside)
        beside.replace(path)
    except Exception:  # a full disk: give back what the attempt took
        beside.unlink(missing_ok=True)
        raise
