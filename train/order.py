"""The order of things in PPO: which prompts an iteration asks, and how its answers are cut into minibatches.

All randomness is a function of (seed, counter, purpose), so that a checkpoint needs no generator's state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from train.config import PpoConfig
from train.packing import groups
from train.rollout import Sample
from train.team import ALONE, Team

Plan = list[list[list[list[int]]]]
"""Rows by epoch, minibatch and micro-batch."""

SAMPLING, PROMPTS, MINIBATCHES = 0, 1, 2
"""Purposes that random numbers are drawn for."""


def seed_for(seed: int, counter: int, purpose: int) -> int:
    """A seed of its own for each use, below 2^53 and far from its neighbours: serving counts prompts up from it."""
    return ((seed % 2**20) * 2**12 + counter % 2**12) * 2**20 + purpose


def prompt_at(prompts: Sequence[tuple[int, ...]], position: int, seed: int) -> tuple[int, ...]:
    """The prompt at a position of the endless, ever reshuffled sequence."""
    epoch, at = divmod(position, len(prompts))
    order = torch.randperm(len(prompts), generator=_generator(seed, epoch, PROMPTS))
    return prompts[int(order[at])]


def plan(iteration: int, samples: Sequence[Sample], ppo: PpoConfig, seed: int, team: Team = ALONE) -> Plan:
    """Rows by epoch, minibatch and micro-batch; the answers to one prompt stay together and share its pass.

    The minibatches don't depend on how many processes there are; of each, a process gets its own rows (maybe none).
    """
    each = ppo.answers_per_prompt
    generator = _generator(seed, iteration, MINIBATCHES)
    found = []
    for _ in range(ppo.epochs):
        order = torch.randperm(len(samples) // each, generator=generator).tolist()
        rows = [group * each + at for group in order for at in range(each)]
        minibatches = [rows[start : start + ppo.minibatch] for start in range(0, len(rows), ppo.minibatch)]
        found.append(
            [_micro_batches(samples, own_rows(minibatch, each, team), ppo.micro_tokens) for minibatch in minibatches]
        )
    return found


def own_rows(minibatch: Sequence[int], each: int, team: Team) -> Sequence[int]:
    """This process's rows of a minibatch; the answers to one prompt stay together where the minibatch has them so."""
    step = each if len(minibatch) % each == 0 else 1
    part = team.share(len(minibatch) // step)
    return minibatch[part.start * step : part.stop * step]


def _micro_batches(samples: Sequence[Sample], rows: Sequence[int], budget: int) -> list[list[int]]:
    return [[rows[at] for at in group] for group in groups([samples[row] for row in rows], budget)]


def _generator(seed: int, counter: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, counter, purpose))
