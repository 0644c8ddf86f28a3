"""The critic: a value head on the policy's own detached states, or on a LoRA adapter of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train import checkpoint, maths
from train.base import CRITIC, Base, states_pass
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.heads import ValueHead
from train.packing import Turn, groups
from train.reward.protocol import StartsCritic, TokenRewardModel

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
"""Strengths that the critic's fit chooses from."""


class Critic:
    """Value head, its adapter if it has one, and their optimiser.

    Attributes:
        head: reads the states.
        weights: all that is trained.
        optimiser: of them.
        adapter: whether the critic has a LoRA adapter of its own.
    """

    def __init__(self, base: Base, reward: TokenRewardModel, config: TrainConfig) -> None:
        """Args:
        base: the model; gets the critic's adapter.
        reward: tells how an answer stands; the critic begins where it is, if they share a shape.
        config: all settings.
        """
        ppo = config.ppo
        self._reward = reward
        self._base, self._ppo, self._budget = base, ppo, ppo.pass_tokens
        self.adapter = ppo.critic == "lora"
        # columns of few and plain meaning would drown among hundreds; a closed-form fit may trust them, AdamW may not
        told = reward.standing_width if self.refitted else 0
        self.head = ValueHead(base.width + told, told).to(base.device)
        self.weights: list[nn.Parameter] = list(self.head.parameters())
        if self.adapter:
            base.adapters.add(CRITIC, config.seed + 1)
            self.weights += base.adapters.parameters(CRITIC)
        self._start = reward.critic_start() if isinstance(reward, StartsCritic) else None
        if self._start is not None and not self.adapter and (self.refitted or self._start.adapter):
            self._start = None  # refitted in closed form, or read in states that the trunk does not have
        if self._start is not None and self._start.adapter is not None:
            base.adapters.load_state(CRITIC, self._start.adapter)
        self.optimiser = checkpoint.adamw(self.weights, ppo.value_learning_rate, ppo.betas, 0.0)

    def states(self, turns: Sequence[Turn], policy_states: Tensor) -> Tensor:
        """What the value head reads, (B, T, H + standing): how the answer stands beside the policy's own states.

        A critic with an adapter, or one that isn't refitted, reads hidden states alone.
        """
        if self.refitted:
            return torch.cat([policy_states.float(), self._standing(turns, policy_states)], dim=-1)
        if not self.adapter:
            return policy_states
        states = torch.zeros_like(policy_states)
        for batch in groups(turns, self._budget):
            with torch.no_grad():
                found, mask = states_pass(self._base, [turns[row] for row in batch], adapter=CRITIC)
            states[torch.tensor(batch, device=policy_states.device), : mask.shape[1]] = found.float()
        return states

    @property
    def refitted(self) -> bool:
        """Whether the head is fitted in closed form on each iteration's answers, and not trained between."""
        return self._ppo.critic_refit and self._ppo.critic == "trunk"

    def _standing(self, turns: Sequence[Turn], like: Tensor) -> Tensor:
        ids = torch.zeros(like.shape[:2], dtype=torch.long, device=like.device)
        mask = torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)
        for row, turn in enumerate(turns):
            ids[row, : len(turn.response_ids)] = torch.tensor(turn.response_ids, device=like.device)
            mask[row, : len(turn.response_ids)] = True
        return self._reward.standing(ids, mask)

    def values(self, turns: Sequence[Turn], states: Tensor, rewards: Tensor, mask: Tensor, *, first: bool) -> Tensor:
        """Values (B, T), from a head that is refitted on what was sampled (always, or before the first step).

        Args:
            turns: the answers.
            states: (B, T, H) from `states`.
            rewards: (B, T), shaped.
            mask: (B, T).
            first: whether the policy has not moved yet.
        """
        ppo = self._ppo
        self.head.calibrate(states[mask])
        returns = maths.gae(rewards, torch.zeros_like(rewards), mask, ppo.gamma, 1.0).returns
        if first and self._start is not None:
            self.head.adopt(self._start.weight, self._start.shift, self._start.scale)
            if ppo.critic_warmup:
                return self._warm_up(turns, states, returns, mask)
        elif self.refitted or (first and ppo.critic_warmup):
            return cross_fitted_values(self.head, states, returns, mask)
        with torch.no_grad():
            return torch.where(mask, self.head(states), 0.0)

    def _warm_up(self, turns: Sequence[Turn], states: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Train the critic alone, before the policy moves (Yuan et al. 2025); values (B, T).

        Each answer's values are told before the critic steps on it: in a single pass none has seen its own return.
        """
        values = torch.zeros_like(returns)
        for _ in range(self._ppo.critic_warmup):
            for batch in groups(turns, self._ppo.micro_tokens):
                rows = torch.tensor(batch, device=mask.device)
                told = self.predict([turns[row] for row in batch], states[rows], mask[rows])
                values[rows] = told.detach()
                loss = maths.value_loss(told, told.detach(), returns[rows], mask[rows], None).loss
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(self.weights, self._ppo.max_grad_norm)
                if not bool(torch.isfinite(norm)):
                    raise TrainingDiverged("the critic's gradient is not finite; lower train.ppo.value_learning_rate")
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
        return values

    def predict(self, turns: Sequence[Turn], states: Tensor, mask: Tensor) -> Tensor:
        """Values (B, T) that carry the gradient; `states` (B, T, H) are read unless the critic has an adapter."""
        if self.adapter:
            found, _ = states_pass(self._base, turns, adapter=CRITIC)
            states = nn.functional.pad(found, (0, 0, 0, mask.shape[1] - found.shape[1]))
        return torch.where(mask, self.head(states), 0.0)

    def state(self) -> dict[str, Tensor]:
        """All tensors, for a checkpoint."""
        tensors = {f"head/{key}": value for key, value in self.head.state_dict().items()}
        if self.adapter:
            tensors |= {f"{CRITIC}/{key}": value for key, value in self._base.adapters.state(CRITIC).items()}
        return tensors | checkpoint.optimiser_tensors(self.optimiser, "critic_optimiser")

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.head.load_state_dict(checkpoint.below(tensors, "head"))
        if self.adapter:
            self._base.adapters.load_state(CRITIC, checkpoint.below(tensors, CRITIC))
        checkpoint.restore_optimiser(self.optimiser, tensors, "critic_optimiser")


def cross_fitted_values(head: ValueHead, states: Tensor, returns: Tensor, mask: Tensor, folds: int = 4) -> Tensor:
    """Fit the critic in closed form; every answer's values come from a fit that has not seen it.

    The ridge's strength is the one that predicts answers held out of that fit best, the strongest being near to a
    constant: a critic that knows nothing must not add noise. The head itself ends fitted on all. Values that had seen
    their own returns would explain the noise away, and the advantage with it.

    Args:
        head: a calibrated head.
        states: (B, T, H).
        returns: (B, T), Monte Carlo.
        mask: (B, T).
        folds: into which the answers are split.

    Returns:
        Values (B, T).
    """
    fold = torch.arange(len(states), device=states.device) % folds
    values = torch.zeros_like(returns)
    for part in range(folds):
        inside, outside = mask & (fold == part)[:, None], mask & (fold != part)[:, None]
        if bool(inside.any()) and bool(outside.any()):
            inner = outside & (fold == (part + 1) % folds)[:, None]
            ridge = _best_ridge(head, states, returns, outside & ~inner, inner)
            found = head.regress(states[outside], returns[outside], (ridge,))
            values[inside] = head.predict(states[inside], found)[0].to(values.dtype)
    held = mask & (fold == 0)[:, None]
    head.fit(states[mask], returns[mask], _best_ridge(head, states, returns, mask & ~held, held))
    return values


def _best_ridge(head: ValueHead, states: Tensor, returns: Tensor, seen: Tensor, unseen: Tensor) -> float:
    """The strength whose fit on `seen` tokens (B, T) predicts the `unseen` ones best."""
    if not bool(seen.any()) or not bool(unseen.any()):
        return RIDGES[-1]
    guesses = head.predict(states[unseen], head.regress(states[seen], returns[seen], RIDGES))
    return RIDGES[int((guesses - returns[unseen]).square().mean(1).argmin())]
