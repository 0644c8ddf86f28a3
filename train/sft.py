"""Warm start: a short supervised phase on people's own answers, before PPO (Ouyang et al. 2022, step 1).

 1. hold out some conversations
 2. the loss before: mean negative log-prob of the answers' tokens (the prompt's never count)
 3. an epoch of minibatches in seeded order, packed as in PPO: each prompt once, no padding
 4. judge: held-out loss, and how far the policy has gone from the base
 5. stop when held-out answers grow less likely, or the distance is used up; keep the best epoch

PPO pays for every nat between policy and base, and the governor ends it at a bound: a warm start that used all of it
would leave PPO no room. All randomness follows from (seed, epoch); every epoch ends in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train import checkpoint
from train.base import POLICY, Base, policy_pass, reference_pass
from train.config import TrainConfig
from train.demonstrations import Demonstration
from train.errors import BaseMismatch, CycleInterrupted, TrainingDiverged
from train.order import own_rows
from train.packing import groups
from train.reward.votes import folds
from train.team import ALONE, Team

_FEWEST_CONVERSATIONS = 5
"""With fewer, none is held out."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The policy after an epoch (0: before the first).

    Attributes:
        epoch: its number.
        loss: nats a token on the demonstrations trained on, mean over the epoch's steps (epoch 0: None).
        held_out: nats a token on those held out; None where none are.
        kl: nats an answer between policy and base, along held-out answers (all, where none are).
    """

    epoch: int
    loss: float | None
    held_out: float | None
    kl: float


@dataclass(frozen=True, slots=True)
class WarmStart:
    """How the phase went; `chosen` is the epoch whose policy PPO begins with (0: the phase changed nothing)."""

    demonstrations: int
    held_out: int
    chosen: int
    epochs: tuple[Epoch, ...]

    def metrics(self) -> dict[str, float]:
        """Figures by name, for manifests and reports."""
        first, best = self.epochs[0], self.epochs[self.chosen]
        figures = {"demonstrations": float(self.demonstrations), "epochs": float(self.chosen), "kl": best.kl}
        if first.held_out is not None and best.held_out is not None:
            figures |= {"loss_before": first.held_out, "loss_after": best.held_out}
        elif best.loss is not None:
            figures["loss_after"] = best.loss
        return {f"sft_{name}": value for name, value in figures.items()}


class WarmStarter:
    """The phase under way."""

    def __init__(
        self,
        base: Base,
        demonstrations: Sequence[Demonstration],
        *,
        config: TrainConfig,
        folder: Path,
        progress: Callable[[float, Epoch | None], None] = lambda _share, _last: None,
        should_stop: Callable[[], bool] = lambda: False,
        team: Team = ALONE,
    ) -> None:
        """Args:
        base: with the policy that the phase begins with.
        demonstrations: at least one.
        config: all settings.
        folder: of the checkpoints; one that holds some is resumed.
        progress: told the share done and the last finished epoch.
        should_stop: asked before each step; True ends the phase with CycleInterrupted.
        team: processes that run this together; each step is split over them.
        """
        assert demonstrations, "a warm start needs demonstrations"
        self._base, self._config, self._folder = base, config, folder
        self._progress, self._should_stop, self._team = progress, should_stop, team
        self._learn, self._held = split(demonstrations, config.sft.heldout, config.seed)
        self._weights = base.adapters.parameters(POLICY)
        self._budget = config.ppo.micro_tokens
        self._optimiser = checkpoint.adamw(self._weights, config.sft_rate, config.ppo.betas, 0.0)
        self._epochs: list[Epoch] = []

    def run(self) -> WarmStart:
        """Train, or go on; the policy adapter then holds the best epoch's policy.

        Raises:
            TrainingDiverged: something is not finite.
            CycleInterrupted: `should_stop` said so; run again to go on.
            BaseMismatch: the checkpoint is of another base, other demonstrations or another configuration.
        """
        self._resume()
        while len(self._epochs) <= self._config.sft.epochs and self._goes_on():
            epoch = len(self._epochs)
            self._finished(epoch, self._train(epoch))
        chosen = self._best()
        tensors, _ = self._team.agree(lambda: checkpoint.load(self._folder, chosen))
        self._base.adapters.load_state(POLICY, checkpoint.below(tensors, POLICY))
        return WarmStart(len(self._learn) + len(self._held), len(self._held), chosen, tuple(self._epochs))

    def _train(self, epoch: int) -> float:
        """One epoch; its mean loss, nats a token."""
        minibatches = self._plan(epoch)
        spent, weight = 0.0, 0.0
        for step, rows in enumerate(minibatches):
            if self._team.any(self._should_stop()):
                raise CycleInterrupted("the cycle was asked to stop; start `hustings train` again and it goes on")
            loss, tokens = self._step([self._learn[row] for row in rows])
            spent, weight = spent + loss * tokens, weight + tokens
            done = (epoch - 1 + (step + 1) / len(minibatches)) / self._config.sft.epochs
            self._progress(done, self._epochs[-1])
        return spent / weight

    def _step(self, turns: Sequence[Demonstration]) -> tuple[float, float]:
        """One optimiser step; the minibatch's loss and its weighted number of tokens."""
        team = self._team
        total = sum(turn.weight * len(turn.response_ids) for turn in turns)
        own = own_rows(range(len(turns)), 1, team)
        micro = [[turns[own[row]] for row in rows] for rows in groups([turns[row] for row in own], self._budget)]
        loss = 0.0
        for at in range(team.rounds(len(micro))):
            counts = at < len(micro)  # who has fewer goes along with one that weighs nothing
            part = _summed_loss(self._base, micro[at] if counts else turns[:1]) * (float(counts) / total)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        loss = team.total(loss)
        team.sum_gradients(self._weights)
        norm = team.clip(self._weights, self._config.ppo.max_grad_norm)
        if not np.isfinite([loss, norm]).all():
            raise TrainingDiverged("the warm start's loss is not finite; lower train.sft.learning_rate")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return loss, total

    def _plan(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._learn)).tolist()
        size = self._config.sft.minibatch
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _finished(self, epoch: int, loss: float | None) -> None:
        held = evaluate_demonstrations(self._base, self._held, self._config)
        along = held or evaluate_demonstrations(self._base, self._learn, self._config)
        assert along is not None
        seen, kl = self._team.lead_says([held[0] if held else 0.0, along[1]])
        self._epochs.append(Epoch(epoch, loss, seen if held else None, kl))
        self._save(epoch)
        self._progress(epoch / self._config.sft.epochs, self._epochs[-1])

    def _goes_on(self) -> bool:
        last = self._epochs[-1]
        return last.kl <= self._config.sft.max_kl and self._best() == last.epoch

    def _best(self) -> int:
        """The epoch with the lowest held-out loss (the last, where nothing is held out) within the bound on KL.

        Where training begins beyond the bound (from an adapter in office), epoch 0 stays.
        """
        within = [one for one in self._epochs[1:] if one.kl <= self._config.sft.max_kl]
        candidates = [self._epochs[0], *within]
        if self._held:
            return min(candidates, key=lambda one: (one.held_out, one.epoch)).epoch
        return candidates[-1].epoch

    def _save(self, epoch: int) -> None:
        tensors = {f"{POLICY}/{key}": value for key, value in self._base.adapters.state(POLICY).items()}
        tensors |= checkpoint.optimiser_tensors(self._optimiser, "optimiser")
        record = {"identity": self._identity(), "epochs": [asdict(one) for one in self._epochs]}
        self._team.agree(lambda: self._write(epoch, tensors, record))

    def _write(self, epoch: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """The lead's part of saving."""
        if self._team.leads:
            checkpoint.save(self._folder, epoch, tensors, record)
            checkpoint.slim(self._folder, epoch - 1, keep=f"{POLICY}/")

    def _resume(self) -> None:
        if self._team.leads:
            self._folder.mkdir(parents=True, exist_ok=True)
        epoch = self._team.lead_found(checkpoint.latest(self._folder) if self._team.leads else None)
        if epoch is None:
            self._finished(0, None)
            return
        tensors, record = self._team.agree(lambda: checkpoint.load(self._folder, epoch))
        if other := checkpoint.difference(record["identity"], self._identity(), {"config": _told_apart(TrainConfig())}):
            raise BaseMismatch(
                f"{self._folder} holds a warm start with another base, configuration or other demonstrations "
                f"({other}); remove it to start anew"
            )
        self._base.adapters.load_state(POLICY, checkpoint.below(tensors, POLICY))
        checkpoint.restore_optimiser(self._optimiser, tensors, "optimiser")
        self._epochs = [Epoch(**one) for one in record["epochs"]]

    def _identity(self) -> dict[str, Any]:
        counts = [len(self._learn), len(self._held)]
        return {"base": self._base.fingerprint, "config": _told_apart(self._config), "demonstrations": counts}


def _told_apart(config: TrainConfig) -> dict[str, Any]:
    """The settings by which warm starts are told apart."""
    return config.model_dump(mode="json", include={"seed", "tuning", "lora", "full", "sft"})


def split(
    demonstrations: Sequence[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Demonstrations to learn from and to hold out; a conversation is on one side only."""
    labels: dict[str, int] = {}
    conversations = np.array([labels.setdefault(one.conversation, len(labels)) for one in demonstrations])
    if share <= 0 or len(labels) < _FEWEST_CONVERSATIONS:
        return list(demonstrations), []
    fold = folds(conversations, max(2, min(round(1 / share), len(labels))), seed)
    learn = [one for one, part in zip(demonstrations, fold, strict=True) if part]
    return learn, [one for one, part in zip(demonstrations, fold, strict=True) if not part]


def evaluate_demonstrations(
    base: Base, turns: Sequence[Demonstration], config: TrainConfig
) -> tuple[float, float] | None:
    """Weighted mean loss, nats a token, and the policy's KL to the base along the answers, nats an answer.

    The KL counts an answer's first `rollout.max_tokens` tokens, so that it is in the governor's unit.
    """
    if not turns:
        return None
    loss, weight, kl = 0.0, 0.0, 0.0
    for chunk in reference_pass(base, turns, budget=config.ppo.pass_tokens):
        part = [turns[row] for row in chunk.rows]
        with torch.no_grad():
            found = policy_pass(base, part, reference=chunk.states)
        weights = _weights(part, found.logprobs)
        loss -= float((weights * torch.where(found.mask, found.logprobs, 0.0).sum(1)).sum())
        weight += float((weights * found.mask.sum(1)).sum())
        kl += float(torch.where(found.mask, found.kl, 0.0)[:, : config.rollout.max_tokens].sum())
    return loss / weight, kl / len(turns)


def _summed_loss(base: Base, turns: Sequence[Demonstration]) -> Tensor:
    """Weighted sum over answers of the negative log-prob of their tokens."""
    weights = torch.cat([torch.full((len(turn.response_ids),), turn.weight, device=base.device) for turn in turns])
    return policy_pass(base, turns, loss=lambda at, scores: -(weights[at] * scores.logprobs).sum()).loss


def _weights(turns: Sequence[Demonstration], like: Tensor) -> Tensor:
    return torch.tensor([turn.weight for turn in turns], dtype=like.dtype, device=like.device)
