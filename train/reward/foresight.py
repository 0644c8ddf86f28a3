"""What a reward model can say of every candidate token, before one is drawn.

Part of the `mix` head's reward of a token follows from the token, its place and the prompt alone: no forward pass is
needed to tell what any other token would have earned there. PPO takes the gradient of that part's expectation over the
whole vocabulary in place of one sampled term: no noise from sampling, and words that were never drawn are weighed too
(all-action policy gradients: Sutton et al. 2001; Asadi et al. 2017; Ciosek & Whiteson 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.packing import Turn
from train.reward.features import pooling_weights


@dataclass(frozen=True, slots=True)
class Tilt:
    """Foreseen rewards of M answer tokens' places: `pools @ tables`, and at the prompt's own tokens something more.

    Attributes:
        pools: (M, K), pooling weights.
        tables: (K, V), reward of each token a unit of pooling weight.
        ids: (M, P), distinct tokens of the prompt, padded with 0.
        extra: (M, P), what these get besides; 0 in the padding.
    """

    pools: Tensor
    tables: Tensor
    ids: Tensor
    extra: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Rewards of every token at the places from `start` to `stop`, (m, V)."""
        return (self.pools[start:stop] @ self.tables).scatter_add_(1, self.ids[start:stop], self.extra[start:stop])


@dataclass(frozen=True, slots=True)
class Foresight:
    """Rewards that follow from token, place and prompt.

    Attributes:
        tables: (2, V), reward of a token a unit of even and of early pooling weight, whatever its context.
        match: (V,), what a token of the prompt gets besides, a unit of even weight.
        first: (V,), the same, only the first time that the answer says it.
    """

    tables: Tensor
    match: Tensor
    first: Tensor

    def tilt(self, turns: Sequence[Turn]) -> Tilt:
        """For the answers' tokens in order, one answer after another."""
        tables = self.tables
        device = tables.device
        widest = max(len(set(turn.prompt_ids)) for turn in turns)
        pools, ids, extra = [], [], []
        for turn in turns:
            answer = torch.tensor(turn.response_ids, device=device)
            pools.append(torch.cat(pooling_weights(torch.ones((1, len(answer)), dtype=torch.bool, device=device))))
            prompt = torch.tensor(sorted(set(turn.prompt_ids)), device=device)
            said = (answer[:, None] == prompt[None]).long()
            fresh = (said.cumsum(0) - said == 0).float()
            gain = pools[-1][0][:, None] * (self.match[prompt] + self.first[prompt] * fresh)
            padding = (0, widest - len(prompt))
            ids.append(torch.nn.functional.pad(prompt, padding).expand(len(answer), -1))
            extra.append(torch.nn.functional.pad(gain, padding))
        return Tilt(torch.cat(pools, dim=1).T.contiguous(), tables, torch.cat(ids), torch.cat(extra))
