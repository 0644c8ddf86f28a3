"""PPO runs of seconds, on the tiny model and a reward that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.base import Base
from train.config import TrainConfig
from train.ppo import PpoResult, PpoTrainer
from train.sampler import LocalRollouts

PROMPTS = [(1, 20, 30, 40), (1, 20, 31), (1, 20, 30, 41, 50), (1, 22)]


@dataclass(frozen=True)
class WantsTokens:
    """Pays for every token whose id leaves 5 when divided by 8; token rewards add up to the score."""

    layers: tuple[int, ...] = (0, 1)
    model_id: str = "wants-tokens"
    price: float = 1.0

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        assert set(hidden) == {0, 1}
        assert hidden[0].shape[:2] == token_ids.shape == prompt_mask.shape
        return self.price * ((token_ids % 8 == 5) & response_mask).float()

    def foresight(self, embeddings: Tensor) -> None:
        return None

    standing_width: int = 0

    def standing(self, token_ids: Tensor, response_mask: Tensor) -> Tensor:
        return torch.zeros((*token_ids.shape, 0))


def config(**ppo: object) -> TrainConfig:
    settings = {
        "iterations": 3,
        "episodes": 32,
        "minibatch": 8,
        "learning_rate": 0.02,
        "value_learning_rate": 0.01,
        "max_approx_kl": None,
        "kl_coefficient": 0.0,
        **ppo,
    }
    return TrainConfig.model_validate(
        {
            "ppo": settings,
            "rollout": {"max_tokens": 4},
            "governor": {"enabled": False},
            "lora": {"rank": 4, "alpha": 8},
        }
    )


def train(
    base: Base,
    folder: Path,
    settings: TrainConfig,
    price: float = 1.0,
    prompts: Sequence[tuple[int, ...]] = PROMPTS,
    **more: object,
) -> PpoResult:
    trainer = PpoTrainer(
        base,
        LocalRollouts(base),
        WantsTokens(price=price),
        prompts,
        config=settings,
        folder=folder,
        **more,  # type: ignore[arg-type]
    )
    return trainer.run()
