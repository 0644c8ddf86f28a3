"""What PPO asks of a reward model. Both heads (`mix`, `last`) keep it; PPO knows no more about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class TokenRewardModel(Protocol):
    """Scores answers from hidden states of the frozen base (adapters off), one reward a token."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden states that it reads: 0 = embeddings, i = output of block i (transformers' `hidden_states[i]`)."""

    @property
    def model_id(self) -> str:
        """Content-addressed id, for manifests and checkpoints."""

    def token_rewards(
        self, hidden: Mapping[int, Tensor], token_ids: Tensor, prompt_mask: Tensor, response_mask: Tensor
    ) -> Tensor:
        """One reward a token; their sum over an answer is its score (voted answers: mean 0, standard deviation 1).

        All tensors cover whole sequences, prompt and answer, padded on either side.

        Args:
            hidden: for each of `layers` the states of the bare base, (B, L, d).
            token_ids: (B, L).
            prompt_mask: (B, L), True = real prompt token.
            response_mask: (B, L), True = real answer token (the end-of-turn token included).

        Returns:
            (B, L) float32, 0 off the answer.
        """
