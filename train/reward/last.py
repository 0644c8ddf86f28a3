"""The `last` head: the textbook reward model, a scalar head on the last real token's top hidden state, with a LoRA.

(Ouyang et al. 2022; initialised as in Huang et al., "The N implementation details of RLHF with PPO": standard deviation
1/sqrt(d + 1).) Right for thousands of votes; with tens of them it is close to a coin, which the cycle's test will say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.base import Base
from train.errors import BaseMismatch, TrainingDiverged
from train.files import sync, write_text
from train.lora import digest
from train.packing import TreeLayout, gather_rows, pack
from train.reward.config import RewardConfig
from train.reward.losses import ties_loss
from train.reward.probe import Array, Rows
from train.reward.protocol import CriticStart
from train.reward.votes import Answer, Votes

ADAPTER = "reward"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class LastHead:
    """A trained head; keeps `TokenRewardModel`. The whole score falls on the answer's last token.

    Attributes:
        base: the frozen model; its adapter `reward` belongs to this head where `lora` is true.
        weight: (d,).
        shift, scale: score = (weight . state - shift) / scale, so that voted answers have mean 0, deviation 1.
        metrics: the report's figures.
    """

    base: Base
    weight: Tensor
    shift: float
    scale: float
    lora: bool
    metrics: Mapping[str, float]

    @property
    def layers(self) -> tuple[int, ...]:
        """None: it makes a pass of its own, because its LoRA changes the states."""
        return ()

    @property
    def model_id(self) -> str:
        """`reward-` and 12 hex digits of its weights' sha256."""
        return f"reward-{digest(self._tensors())[:12]}"

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        """One reward a token, (B, L): the score at the answer's last token, 0 elsewhere. `hidden` isn't read."""
        turns = [
            Answer(tuple(ids[prompt].tolist()), tuple(ids[response].tolist()))
            for ids, prompt, response in zip(token_ids, prompt_mask, response_mask, strict=True)
        ]
        with torch.no_grad():
            scores = (raw_scores(self.base, turns, self.weight, lora=self.lora) - self.shift) / self.scale
        place = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        last = torch.where(response_mask, place, -1).amax(dim=1, keepdim=True)
        return torch.where((place == last) & response_mask, scores.float().unsqueeze(1), 0.0)

    @property
    def standing_width(self) -> int:
        """No column: the critic's own states must do."""
        return 0

    def standing(self, token_ids: Tensor, response_mask: Tensor) -> Tensor:
        """Nothing, (B, T, 0)."""
        return torch.zeros((*token_ids.shape, 0), device=token_ids.device)

    def foresight(self, embeddings: Tensor) -> None:
        """Nothing: only the answer's last token is read."""

    def critic_start(self) -> CriticStart:
        """Where a critic of the same shape may begin."""
        adapter = self.base.adapters.state(ADAPTER) if self.lora else None
        return CriticStart(adapter, self.weight, self.shift, self.scale)

    def save(self, folder: Path) -> None:
        """Write `reward.safetensors` and `reward.json` into `folder`; once it returns, they outlast a loss of power."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), folder / "reward.safetensors")
        sync(folder / "reward.safetensors")
        record = {"format": FORMAT, "head": "last", "model_id": self.model_id, "shift": self.shift, "scale": self.scale}
        more = {"lora": self.lora, "base_fingerprint": self.base.fingerprint, "metrics": dict(self.metrics)}
        write_text(folder / "reward.json", json.dumps(record | more, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, base: Base) -> LastHead:
        """Read what `save` wrote, and put its adapter into `base`.

        Raises:
            BaseMismatch: it was trained on another base.
        """
        record = json.loads((folder / "reward.json").read_text())
        if record["base_fingerprint"] != base.fingerprint:
            raise BaseMismatch(f"the reward model in {folder} is of another base model; remove the cycle's folder")
        tensors = load_file(folder / "reward.safetensors")
        weight = tensors.pop("head.weight").to(base.device)
        if record["lora"]:
            base.adapters.add(ADAPTER, 0)
            base.adapters.load_state(ADAPTER, tensors)
        return cls(base, weight, record["shift"], record["scale"], record["lora"], record["metrics"])

    def _tensors(self) -> dict[str, Tensor]:
        adapter = self.base.adapters.state(ADAPTER) if self.lora else {}
        return {"head.weight": self.weight.detach().cpu().contiguous()} | {
            name: tensor.cpu().contiguous() for name, tensor in adapter.items()
        }


def raw_scores(base: Base, turns: Sequence[Answer], weight: Tensor, *, lora: bool) -> Tensor:
    """`weight . state` of each sequence's last real token, (B,); gradients flow."""
    packed = pack(turns, base.device)
    with base.adapters.using(ADAPTER if lora else None):
        states = base.forward(packed.ids, packed.positions, TreeLayout(packed))
    lengths = (packed.prompt_mask | packed.sequence_response_mask).sum(dim=1)
    last = packed.full[torch.arange(len(turns), device=base.device), lengths - 1]
    return gather_rows(states, last).float() @ weight


def train_last(
    base: Base,
    votes: Votes,
    rows: Rows,
    config: RewardConfig,
    seed: int,
    *,
    watch: Callable[[int, Tensor], None] = lambda seen, weight: None,
) -> LastHead:
    """Train head (and LoRA) with the ties-aware pairwise loss on the votes of `rows`.

    Comparisons of one prompt stay in one batch (InstructGPT): apart, a prompt seen again would be overfitted. A batch's
    loss is the sum of its votes' by weight, over the batch's size and the mean weight of all votes: whose votes hardly
    count, hardly moves the head, alone in a batch too.

    Args:
        base: the frozen model; gets an adapter `reward` where `config.last_lora`.
        votes: the snapshot's.
        rows: comparisons to learn from.
        config: settings.
        seed: of the head, the LoRA and the order.
        watch: called after each step with the comparisons learnt from so far and the head's weight, (d,).

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    width = base.width
    weight = nn.Parameter((torch.randn(width, generator=generator) / math.sqrt(width + 1)).to(base.device))
    trained = [weight]
    if config.last_lora:
        base.adapters.add(ADAPTER, seed)
        trained += base.adapters.parameters(ADAPTER)
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    share = float(votes.tied[rows].mean())
    nu = 2 * share / max(1 - share, 1e-3)
    unit = float(votes.weight[rows].mean()) or 1.0
    seen = 0
    for _ in range(config.epochs):
        for batch in _batches(votes, rows, config.batch_pairs, generator):
            optimiser.zero_grad()
            for part in _parts(votes, batch, config.batch_tokens):
                counts = float(votes.weight[part].sum()) / (unit * len(batch))
                if counts > 0:  # votes of which none counts have no mean
                    loss = counts * _loss(base, votes, part, weight, nu, lora=config.last_lora)
                    if not torch.isfinite(loss):
                        raise TrainingDiverged(
                            "the reward model's loss is not finite: lower train.reward.learning_rate"
                        )
                    loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            seen += len(batch)
            watch(seen, weight.detach())
    return LastHead(base, weight.detach(), 0.0, 1.0, config.last_lora, {})


def _loss(base: Base, votes: Votes, rows: Rows, weight: Tensor, nu: float, *, lora: bool) -> Tensor:
    """Of some comparisons, their mean by weight."""
    turns = [votes.answers[at] for row in rows for at in (votes.first[row], votes.second[row])]
    scores = raw_scores(base, turns, weight, lora=lora)
    lead = scores[0::2] - torch.as_tensor(votes.margin[rows], device=base.device).float()
    tied = torch.as_tensor(votes.tied[rows], device=base.device)
    counts = torch.as_tensor(votes.weight[rows], device=base.device).float()
    return ties_loss(lead, scores[1::2], tied, nu, counts)


def score_all(head: LastHead, answers: Sequence[Answer]) -> Array:
    """Unnormalised scores of answers, (answers,)."""
    return scores_of(head.base, answers, head.weight, lora=head.lora)


def scores_of(base: Base, answers: Sequence[Answer], weight: Tensor, *, lora: bool, size: int = 16) -> Array:
    """`raw_scores` of any number of answers, `size` at a time and without gradients, (answers,)."""
    with torch.no_grad():
        parts = [
            raw_scores(base, answers[at : at + size], weight, lora=lora).cpu() for at in range(0, len(answers), size)
        ]
    return np.asarray(torch.cat(parts).double().numpy())


def normalised(head: LastHead, scores: Array, metrics: Mapping[str, float]) -> LastHead:
    """The head with scores of mean 0 and standard deviation 1 over the voted answers."""
    spread = float(scores.std())
    return replace(head, shift=float(scores.mean()), scale=spread if spread > 1e-9 else 1.0, metrics=dict(metrics))


def _batches(votes: Votes, rows: Rows, size: int, generator: torch.Generator) -> list[Rows]:
    """Batches of about `size` comparisons in random order, those of one prompt together."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        by_prompt.setdefault(votes.answers[votes.first[row]].prompt_ids, []).append(int(row))
    groups = list(by_prompt.values())
    batches: list[list[int]] = [[]]
    for at in torch.randperm(len(groups), generator=generator).tolist():
        if len(batches[-1]) >= size:
            batches.append([])
        batches[-1] += groups[at]
    return [np.array(batch, dtype=np.int64) for batch in batches]


def _parts(votes: Votes, batch: Rows, budget: int) -> list[Rows]:
    """A batch in parts of at most `budget` tokens, a prompt counted once (one comparison may be longer alone)."""
    parts: list[list[int]] = []
    used, last = 0, None
    for row in batch.tolist():
        sides = [votes.answers[at] for at in (votes.first[row], votes.second[row])]
        answers, prompt = sum(len(side.response_ids) for side in sides), sides[0].prompt_ids
        cost = answers + (0 if prompt == last else len(prompt))
        if not parts or used + cost > budget:
            parts.append([])
            used, cost = 0, answers + len(prompt)
        parts[-1].append(row)
        used, last = used + cost, prompt
    return [np.array(part, dtype=np.int64) for part in parts]
