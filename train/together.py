"""The passes of an iteration, split over the processes of a team: each does its share of the rows and hands it round.

What comes back is on every process what one process alone would have, to rounding; what is worked out from it (returns,
advantages, the critic's fit) is worked out everywhere alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from train.base import Base
from train.config import TrainConfig
from train.experience import Old, Scored, old_policy, recorded, response_mask, score
from train.order import Plan
from train.reward.protocol import TokenRewardModel
from train.rollout import Rollouts, Sample
from train.sampler import LocalRollouts
from train.team import Team


class HeardRollouts:
    """Of a process that hears serving's answers from the lead (`SharedRollouts`), and never asks itself."""

    local = False

    def generate(
        self, prompts: Sequence[tuple[int, ...]], n: int, *, max_tokens: int, temperature: float, seed: int
    ) -> list[Sample]:
        """Nobody may ask."""
        raise AssertionError("the lead asks serving")

    def close(self) -> None:
        """Nothing is held."""


class SharedRollouts:
    """A source of answers for a team. A local sampler draws each process's share; from serving, the lead asks for all.

    An answer's noise belongs to its place in the whole call, so the answers are those that one process would draw.
    """

    def __init__(self, inner: Rollouts, team: Team) -> None:
        self._inner, self._team = inner, team

    @property
    def local(self) -> bool:
        """See `Rollouts`."""
        return self._inner.local

    def generate(
        self, prompts: Sequence[tuple[int, ...]], n: int, *, max_tokens: int, temperature: float, seed: int
    ) -> list[Sample]:
        """See `Rollouts`."""
        team = self._team
        if isinstance(self._inner, LocalRollouts):
            part = self._inner.generate(
                prompts,
                n,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                only=team.share(len(prompts)),
            )
            return self._hand_round(part, prompts, n, max_tokens)
        drawn: list[Sample] = []

        def ask() -> None:
            if team.leads:
                drawn.extend(
                    self._inner.generate(prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed)
                )

        team.agree(ask)
        if team.leads:
            team.tell({"samples": [[s.response_ids, s.logprobs, s.finish_reason] for s in drawn]})
            return drawn
        rows = [prompt for prompt in prompts for _ in range(n)]
        return [
            Sample(prompt, tuple(ids), tuple(logprobs), reason)
            for prompt, (ids, logprobs, reason) in zip(rows, team.hear()["samples"], strict=True)
        ]

    def close(self) -> None:
        """See `Rollouts`."""
        self._inner.close()

    def _hand_round(
        self, part: Sequence[Sample], prompts: Sequence[tuple[int, ...]], n: int, width: int
    ) -> list[Sample]:
        team = self._team
        ids = torch.zeros((len(part), width), dtype=torch.long)
        numbers = torch.zeros((len(part), 2), dtype=torch.long)  # length, whether it ended by itself
        logprobs = torch.zeros((len(part), width), dtype=torch.float64)
        for row, sample in enumerate(part):
            length = len(sample.response_ids)
            ids[row, :length] = torch.tensor(sample.response_ids)
            logprobs[row, :length] = torch.tensor(sample.logprobs, dtype=torch.float64)
            numbers[row, 0], numbers[row, 1] = length, int(sample.finish_reason == "stop")
        count = len(prompts)

        def joined(tensor: Tensor) -> Tensor:
            """Rows of prompts' groups, so that shares are of prompts."""
            return team.gather(tensor.view(-1, n, *tensor.shape[1:]), count).flatten(0, 1)

        states = self._states(part, width)
        every = joined(states)
        rows = [prompt for prompt in prompts for _ in range(n)]
        return [
            Sample(
                prompt_ids=prompt,
                response_ids=tuple(tokens[: int(length)].tolist()),
                logprobs=tuple(scores[: int(length)].tolist()),
                finish_reason="stop" if ended else "length",
                states=hidden[: int(length)],
            )
            for prompt, tokens, scores, (length, ended), hidden in zip(
                rows, joined(ids), joined(logprobs), joined(numbers).tolist(), every, strict=True
            )
        ]

    def _states(self, part: Sequence[Sample], width: int) -> Tensor:
        inner = self._inner
        assert isinstance(inner, LocalRollouts)
        states = torch.zeros((len(part), width, inner.width), device=self._team.device)
        for row, sample in enumerate(part):
            if sample.states is not None:
                states[row, : len(sample.states)] = sample.states.float()
        return states


def of_base(base: Base, batch: int, team: Team) -> Rollouts:
    """A team's sampler of the bare base."""
    local = LocalRollouts(base, adapter=None, batch=batch)
    return local if team.size == 1 else SharedRollouts(local, team)


def score_together(
    team: Team,
    base: Base,
    samples: Sequence[Sample],
    reward: TokenRewardModel,
    config: TrainConfig,
    *,
    witness: TokenRewardModel | None = None,
) -> Scored:
    """`experience.score`, each process for its share of the prompts."""
    if team.size == 1:
        return score(base, samples, reward, config, witness=witness)
    each = config.ppo.answers_per_prompt
    groups = team.share(len(samples) // each)
    mine = samples[groups.start * each : groups.stop * each]
    part = team.agree(lambda: score(base, mine, reward, config, witness=witness) if mine else None)
    mask = response_mask(samples, base.device)
    width = mask.shape[1]

    def joined(tensor: Tensor | None, *more: int) -> Tensor:
        padded = torch.zeros((len(mine), width, *more), device=base.device)
        if tensor is not None:
            padded[:, : tensor.shape[1]] = tensor
        return team.gather(padded.view(len(mine) // each, each, width, *more), len(samples) // each).flatten(0, 1)

    rewards = joined(None if part is None else part.rewards)
    return Scored(
        samples=samples,
        mask=mask,
        sampled=recorded(samples, mask),
        reference=joined(None if part is None else part.reference),
        reference_states=joined(
            None if part is None else part.reference_states, base.width if config.ppo.exact_kl else 0
        ),
        rewards=rewards,
        scores=rewards.sum(1),
        gold=None if witness is None else joined(None if part is None else part.gold),
    )


def old_together(team: Team, base: Base, scored: Scored, order: Plan, config: TrainConfig, *, recompute: bool) -> Old:
    """`experience.old_policy`, each process for the rows that it will train on first."""
    micro_batches = [micro for minibatch in order[0] for micro in minibatch]
    if team.size == 1 or not recompute:
        return old_policy(base, scored, micro_batches, config, local=not recompute)
    idle = team.rounds(len(micro_batches)) - len(micro_batches)
    part = old_policy(base, scored, [*micro_batches, *([[0]] * idle)], config, local=False)
    mine = torch.zeros(len(scored.samples), dtype=torch.bool, device=base.device)
    mine[[row for micro in micro_batches for row in micro]] = True
    logprobs, states = part.logprobs * mine[:, None], part.states * mine[:, None, None]
    torch.distributed.all_reduce(logprobs)  # every row is one process's; the others add zeros
    if states.numel():
        torch.distributed.all_reduce(states)
    return Old(logprobs, states)
