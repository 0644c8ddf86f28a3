"""What PPO asks of a reward model. Both heads (`mix`, `last`) keep it; PPO knows no more about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from train.reward.foresight import Foresight


@dataclass(frozen=True, slots=True)
class CriticStart:
    """A reward model as a critic: (weight . state - shift) / scale, read in the states of its adapter.

    Attributes:
        adapter: tensors under PEFT's names; None: the bare base's states.
        weight: (d,).
        shift: see above.
        scale: see above.
    """

    adapter: dict[str, Tensor] | None
    weight: Tensor
    shift: float
    scale: float


@runtime_checkable
class StartsCritic(Protocol):
    """A reward model of the critic's own shape: the critic may begin where it is (Ouyang et al. 2022)."""

    def critic_start(self) -> CriticStart:
        """The reward model's weights, to be copied."""


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

    @property
    def standing_width(self) -> int:
        """Columns of `standing`; 0 for none."""

    def standing(self, token_ids: Tensor, response_mask: Tensor) -> Tensor:
        """What a critic should know of an answer before each token is chosen, where this reward depends on it.

        Args:
            token_ids: (B, T), answers only.
            response_mask: (B, T).

        Returns:
            (B, T, standing_width) float32.
        """

    def foresight(self, embeddings: Tensor) -> Foresight | None:
        """What can be said of every candidate token before one is drawn; None if nothing.

        Up to a term that is the same for all tokens of a place, `token_rewards` of an answer is `Tilt.rows` at the
        token drawn plus what only a forward pass can tell.

        Args:
            embeddings: (V, d), the base's input embeddings.
        """
