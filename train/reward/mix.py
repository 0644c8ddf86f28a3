"""The `mix` head: pooled layers, surface and prompt-meeting features under a regularised Bradley-Terry with ties.

A fitted head is one weight vector a block. Its score of an answer is the sum of its token rewards, exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.errors import BaseMismatch, OneSidedVotes
from train.files import sync, write_text
from train.reward import ensemble, features, tokens
from train.reward.families import View, structures, views
from train.reward.features import Sequences, Vocabulary
from train.reward.foresight import Foresight
from train.reward.probe import Array, Outcomes, Rows
from train.reward.scales import Averaged, average, refit
from train.reward.votes import Votes

FORMAT = 1
BAD_WEIGHT = 0.25
"""What it counts, of a vote, that each answer of a both_bad lost against the average answer."""


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
        members: by block, (K, k): weights of the ensemble's heads less their mean; empty without an ensemble.
        pessimism: how many of the members' deviations are taken off the score.
        doubt: the members' mean deviation on voted answers, given back so that their mean score stays 0.
    """

    layers: tuple[int, ...]
    weights: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    scale: float
    vocabulary: Vocabulary
    base_fingerprint: str
    metrics: Mapping[str, float]
    members: Mapping[str, Tensor] = field(default_factory=dict)
    pessimism: float = 0.0
    doubt: float = 0.0

    @property
    def model_id(self) -> str:
        """`reward-` and 12 hex digits of the sha256 of all that its scores depend on."""
        total = hashlib.sha256(self.base_fingerprint.encode())
        for name in sorted(self.weights):
            total.update(name.encode() + _told(name, self.weights[name]) + _told(name, self.means[name]))
        if self.pessimism:
            total.update(f"{self.pessimism} {self.doubt}".encode())
            for name in sorted(self.members):
                total.update(_told(name, self.members[name]))
        return f"reward-{total.hexdigest()[:12]}"

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        """One reward a token, (B, L), 0 off the answer: see `TokenRewardModel`."""
        assert token_ids.shape == prompt_mask.shape == response_mask.shape, "(B, L) everywhere"
        sequences = Sequences(hidden, token_ids, prompt_mask, response_mask)
        doubted = self.pessimism > 0 and bool(self.members)
        columns = []
        for block in features.blocks(sequences, self._tables(token_ids.device), self.layers):
            weight = self.weights[block.name].unsqueeze(0)
            weight = (torch.cat([weight, self.members[block.name]]) if doubted else weight).to(token_ids.device)
            offset = weight @ self.means[block.name].to(token_ids.device)
            columns.append(block.pooling.unsqueeze(-1) * (block.values.float() @ weight.T - offset))
        rewards = torch.stack(columns).sum(dim=0) * response_mask.unsqueeze(-1)
        if not doubted:
            return rewards[..., 0]
        even, _ = features.pooling_weights(response_mask)
        return rewards[..., 0] - self.pessimism * (ensemble.token_deviation(rewards[..., 1:]) - even * self.doubt)

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
        certain = np.asarray(np.sum(parts, axis=0))
        if not (self.pessimism and self.members):
            return certain
        return certain - self.pessimism * (ensemble.deviation(self.member_scores(pooled)) - self.doubt)

    def member_scores(self, pooled: Mapping[str, Array]) -> Array:
        """The members' scores of answers less their mean, (K, answers): see `ensemble.disagreement`.

        Raises:
            ValueError: the head has no ensemble.
        """
        if not self.members:
            raise ValueError("this reward model has no ensemble: set train.reward.members and refit it")
        parts = [
            self.members[name].double().numpy() @ (pooled[name] - mean.double().numpy()).T
            for name, mean in self.means.items()
        ]
        return np.asarray(np.sum(parts, axis=0))

    def save(self, folder: Path) -> None:
        """Write `reward.safetensors` and `reward.json` into `folder`; once it returns, they outlast a loss of power."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight/{n}": t.contiguous() for n, t in self.weights.items()}
        tensors |= {f"mean/{n}": t.contiguous() for n, t in self.means.items()}
        tensors |= {f"member/{n}": t.contiguous() for n, t in self.members.items()}
        tensors |= {"surface": self.vocabulary.surface, "rarity": self.vocabulary.rarity}
        save_file(tensors, folder / "reward.safetensors")
        sync(folder / "reward.safetensors")
        record = {
            "format": FORMAT,
            "head": "mix",
            "model_id": self.model_id,
            "layers": list(self.layers),
            "scale": self.scale,
            "base_fingerprint": self.base_fingerprint,
            "metrics": dict(self.metrics),
            "pessimism": self.pessimism,
            "doubt": self.doubt,
        }
        write_text(folder / "reward.json", json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> MixHead:
        """Read what `save` wrote."""
        record: dict[str, Any] = json.loads((folder / "reward.json").read_text())
        tensors = _with_valence(load_file(folder / "reward.safetensors"))
        return cls(
            layers=tuple(record["layers"]),
            weights={n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")},
            means={n.removeprefix("mean/"): t for n, t in tensors.items() if n.startswith("mean/")},
            scale=float(record["scale"]),
            vocabulary=Vocabulary(tensors["surface"], tensors["rarity"]),
            base_fingerprint=record["base_fingerprint"],
            metrics=record["metrics"],
            members={n.removeprefix("member/"): t for n, t in tensors.items() if n.startswith("member/")},
            pessimism=float(record.get("pessimism", 0.0)),
            doubt=float(record.get("doubt", 0.0)),
        )

    def fitted_on(self, base_fingerprint: str) -> MixHead:
        """The head itself.

        Raises:
            BaseMismatch: it was fitted on another base.
        """
        if self.base_fingerprint != base_fingerprint:
            raise BaseMismatch(f"the reward model {self.model_id} is of another base model: it can't judge this one")
        return self

    def _tables(self, device: torch.device) -> Vocabulary:
        return Vocabulary(self.vocabulary.surface.to(device), self.vocabulary.rarity.to(device))


def _told(name: str, values: Tensor) -> bytes:
    """A block's values for the head's id, which stays what it was where the columns of valence say nothing."""
    at, end = tokens.PLEASANT, len(tokens.COLUMNS)
    if name in {"surface", "opening"} and not values[..., at:end].any():
        values = torch.cat([values[..., :at], values[..., end:]], dim=-1)
    return values.contiguous().numpy().tobytes()


def _with_valence(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head of before the columns of valence, with zeros in their place; others as they are."""
    missing = len(tokens.COLUMNS) + 1 - tensors["surface"].shape[1]
    if not missing:
        return tensors

    def widened(rows: Tensor) -> Tensor:
        before, after = rows[..., : tokens.PLEASANT], rows[..., tokens.PLEASANT :]
        return torch.cat([before, rows.new_zeros((*rows.shape[:-1], missing)), after], dim=-1)

    shaped = {name for name in tensors if name.endswith(("/surface", "/opening"))} | {"surface"}
    return {name: widened(tensor) if name in shaped else tensor for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Weights:
    """A linear score over pooled features: `sum_b (x_b - mean_b) . weight_b`, in logits.

    Attributes:
        weight: by block, (k,).
        nu: the tie weight.
        variance: prior variance of each family.
        averaged: the fits that it is made of.
    """

    weight: dict[str, Array]
    nu: float
    variance: dict[str, float]
    averaged: Averaged

    def differences(self, pooled: Mapping[str, Array], first: Rows, second: Rows) -> Array:
        """Score of the first minus score of the second answer, logits, (n,)."""
        parts = [(pooled[name][first] - pooled[name][second]) @ weight for name, weight in self.weight.items()]
        return np.asarray(np.sum(parts, axis=0))


@dataclass(frozen=True, slots=True)
class Problem:
    """Votes as rows of feature differences.

    Attributes:
        families: by family, differences (n, k) whose mean squared row norm is 1.
        views: by family, the view that made them, and its factor.
        outcomes: what voters said, (n,).
        vote: index of the vote that each row comes from, (n,).
        widths: columns of each block.
    """

    families: dict[str, Array]
    views: dict[str, tuple[View, float]]
    outcomes: Outcomes
    vote: Rows
    widths: dict[str, int]


def pose(pooled: Mapping[str, Array], votes: Votes, rows: Rows, seen: Mapping[str, View] | None = None) -> Problem:
    """The votes of `rows` as a problem to fit.

    Args:
        pooled: features of all answers by block, (answers, k).
        votes: all votes.
        rows: which of them to learn from.
        seen: `answer_views` of the votes; without, plain views are made.

    Raises:
        OneSidedVotes: no feature tells the answers apart.
        TrainingDiverged: a feature is not finite.
    """
    seen = answer_views(pooled, votes, {}) if seen is None else seen
    first, second, outcomes, vote = _rows(votes, rows)
    used = np.unique(np.concatenate([votes.first[rows], votes.second[rows]]))
    found: dict[str, Array] = {}
    kept: dict[str, tuple[View, float]] = {}
    for name, view in seen.items():
        block = pooled[view.block]
        values = np.vstack([block, block[used].mean(axis=0)])  # row -1: the average answer
        differences = view.of(values[first] - values[second])
        norm = float(np.sqrt((differences**2).sum(axis=1).mean()))
        if norm > 1e-9:
            found[name] = differences / norm
            kept[name] = (view, 1 / norm)
    if not found:
        raise OneSidedVotes("every voted pair holds two answers with equal features; nothing can be learnt from them")
    return Problem(found, kept, outcomes, vote, {block: values.shape[1] for block, values in pooled.items()})


def answer_views(pooled: Mapping[str, Array], votes: Votes, spread: Mapping[str, Array]) -> dict[str, View]:
    """Every family's view, with statistics of all voted answers (their features, not who won): see `views`."""
    return views(pooled, np.unique(np.concatenate([votes.first, votes.second])), spread)


def fit_weights(
    pooled: Mapping[str, Array], votes: Votes, rows: Rows, seen: Mapping[str, View] | None = None
) -> Weights:
    """Fit on the votes of `rows`; arguments and errors are those of `pose`."""
    return fit_problem(pose(pooled, votes, rows, seen))


def fit_problem(problem: Problem) -> Weights:
    """Fit every structure and average."""
    return collapse(average(problem.families, problem.outcomes, structures(list(problem.families))), problem)


def fit_members(problem: Problem, fitted: Weights, counts: Array) -> dict[str, Array]:
    """Weights of an ensemble by block, (K, k), in logits, less their mean.

    Args:
        problem: the votes.
        fitted: the fit of all of them, whose structures, shares and scales the members keep.
        counts: how often each vote counts for each member (`ensemble.bootstrap`), (K, votes).
    """
    found: list[dict[str, Array]] = []
    for count in counts:
        outcomes = replace(problem.outcomes, weight=problem.outcomes.weight * count[problem.vote])
        found.append(collapse(refit(problem.families, outcomes, fitted.averaged), problem).weight)
    stacked = {block: np.stack([one[block] for one in found]) for block in problem.widths}
    return {block: values - values.mean(axis=0) for block, values in stacked.items()}


def collapse(averaged: Averaged, problem: Problem) -> Weights:
    """Add structures and families up, a vector a block."""
    weight = {block: np.zeros(width) for block, width in problem.widths.items()}
    for share, scaled in averaged.parts:
        for name, variance in scaled.variance.items():
            view, factor = problem.views[name]
            dual = problem.families[name].T @ scaled.fit.dual
            weight[view.block][view.columns] += share * variance * factor * view.back(dual)
    return Weights(weight, averaged.nu, averaged.variance(), averaged)


def _rows(votes: Votes, rows: Rows) -> tuple[Rows, Rows, Outcomes, Rows]:
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
    return first, second, outcomes, np.concatenate([rows, bad, bad])


def make_head(
    fitted: Weights,
    pooled: Mapping[str, Array],
    votes: Votes,
    *,
    layers: tuple[int, ...],
    vocabulary: Vocabulary,
    base_fingerprint: str,
    metrics: Mapping[str, float],
    members: Mapping[str, Array] | None = None,
    pessimism: float = 0.0,
) -> MixHead:
    """A head whose scores have mean 0 and standard deviation 1 over the voted answers."""
    means = {name: values.mean(axis=0) for name, values in pooled.items()}
    members = members or {}
    raw = np.sum([(pooled[n] - means[n]) @ w for n, w in fitted.weight.items()], axis=0)
    if pessimism and members:
        doubts = ensemble.deviation(np.sum([w @ (pooled[n] - means[n]).T for n, w in members.items()], axis=0))
    else:
        doubts = np.zeros(len(raw))
    spread = float(np.std(raw - pessimism * doubts))
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
        members={n: torch.from_numpy(w / spread).float() for n, w in members.items()},
        pessimism=pessimism,
        doubt=float(doubts.mean()) / spread,
    )
