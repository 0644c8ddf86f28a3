"""Keeping to the question: how much of a prompt's own wording an answer takes up, and a price that holds it there.

Optimised against a taste that says nothing of the question, answers drift away from it, and neither KL nor perplexity
nor repetition sees that. So the governor measures it, and while the policy takes up less than the base does, PPO is
paid for it: a Lagrange multiplier that rises with the shortfall and falls to nothing without one (constrained policy
optimisation; Achiam et al. 2017, Moskovitz et al. 2023 for reward models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.packing import Turn
from train.reward.features import prompt_rarity
from train.reward.foresight import Tilt

SHORTEST = 3
"""Letters of a word that can carry a topic."""


@dataclass(frozen=True, slots=True)
class Topic:
    """Measures and pays for taking up the prompt's words.

    Attributes:
        word: (V,), ids that read the same but for case and spaces share a number; -1 for no word.
        weight: (words,), how much each counts: its rarity among prompts, squared.
        spellings: ids of each word.
    """

    word: Tensor
    weight: Tensor
    spellings: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Any, size: int, prompts: Sequence[tuple[int, ...]]) -> Topic:
        """From a tokenizer of `size` ids, and prompts (token ids) that tell rare words from common ones."""
        special = {int(i) for i in tokenizer.all_special_ids}
        known = min(size, len(tokenizer))
        texts = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
        numbers: dict[str, int] = {}
        word = torch.full((size,), -1, dtype=torch.long)
        for i, text in enumerate(texts):
            core = text.strip().casefold()
            if i not in special and len(core) >= SHORTEST and core.isalpha():
                word[i] = numbers.setdefault(core, len(numbers))
        spelt: list[list[int]] = [[] for _ in numbers]
        for i, number in enumerate(word.tolist()):
            if number >= 0:
                spelt[number].append(i)
        words = [tuple({n for n in word[list(prompt)].tolist() if n >= 0}) for prompt in sorted(set(prompts))]
        return cls(word, prompt_rarity(words, len(numbers)).square(), tuple(map(tuple, spelt)))

    def asked(self, turn: Turn) -> Tensor:
        """The prompt's words, once each, rising; those that count for nothing left out."""
        words = torch.unique(self.word[list(turn.prompt_ids)])
        words = words[words >= 0]
        counting: Tensor = words[self.weight[words] > 0]
        return counting

    def kept(self, turns: Sequence[Turn]) -> float:
        """Mean over answers of the share of the prompt's words, by weight, that the answer takes up."""
        shares = [share for share in self.shares(turns) if share is not None]
        return sum(shares) / len(shares) if shares else 1.0

    def shares(self, turns: Sequence[Turn]) -> list[float | None]:
        """That share of each answer; None where the prompt has no word that counts."""
        found: list[float | None] = []
        for turn in turns:
            asked = self.asked(turn)
            said = torch.isin(asked, self.word[list(turn.response_ids)])
            found.append(float(self.weight[asked[said]].sum() / self.weight[asked].sum()) if len(asked) else None)
        return found

    def rewards(self, turns: Sequence[Turn], mask: Tensor) -> Tensor:
        """A word's share where the answer first says it, (B, T); an answer's sum is what `kept` averages.

        Args:
            turns: prompts with answers.
            mask: (B, T), True = real answer token.
        """
        found = torch.zeros(mask.shape, device=mask.device)
        for row, turn in enumerate(turns):
            places, gains = self._gains(turn)
            spoken = self.word[list(turn.response_ids)]
            hit = places == spoken[:, None]
            found[row, : len(spoken)] = (gains * hit).sum(1).to(mask.device)
        return found

    def tilt(self, turns: Sequence[Turn], price: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Foreseen rewards at the answers' tokens in order: ids (M, P) and what each would earn (M, P), 0-padded."""
        ids, extra = [], []
        for turn in turns:
            places, gains = self._gains(turn)
            spellings = [self.spellings[word] for word in places.tolist()]
            counts = torch.tensor([len(s) for s in spellings], dtype=torch.long)
            flat = torch.tensor([i for s in spellings for i in s], dtype=torch.long)
            ids.append(flat.expand(len(gains), -1))
            extra.append(gains.repeat_interleave(counts, dim=1) * price)
        widest = max(row.shape[1] for row in ids)
        pad = [(0, widest - row.shape[1]) for row in ids]
        where, what = (torch.cat([functional.pad(x, p) for x, p in zip(xs, pad, strict=True)]) for xs in (ids, extra))
        return where.to(device), what.to(device)

    def _gains(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """The prompt's words (P,), and what saying one earns at each place (T, P): nothing once it has been said."""
        asked = self.asked(turn)
        spoken = self.word[list(turn.response_ids)]
        hit = spoken[:, None] == asked[None]
        fresh = ((hit.cumsum(0) - hit.long()) == 0).float()
        share = self.weight[asked] / self.weight[asked].sum().clamp(min=1e-9)
        return asked, share[None] * fresh


def joined(tilt: Tilt, extra: tuple[Tensor, Tensor]) -> Tilt:
    """A tilt with more ids and what they earn."""
    return Tilt(tilt.pools, tilt.tables, torch.cat((tilt.ids, extra[0]), 1), torch.cat((tilt.extra, extra[1]), 1))
