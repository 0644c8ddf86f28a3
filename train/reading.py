"""Features of the voted answers: read when a cycle needs them, and most of them while it still waits for votes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from feedback.paths import DataPaths
from train.base import Base
from train.config import TrainConfig
from train.data import TrainingData, VotesSource
from train.reward.extract import FeatureReader, layers_of, vocabulary_for
from train.reward.features import Vocabulary
from train.reward.probe import Array
from train.team import Team


class ReadingTools(Protocol):
    """What reading takes of a cycle's tools."""

    @property
    def paths(self) -> DataPaths:
        """The data folder."""

    @property
    def base(self) -> Base:
        """The frozen model."""

    @property
    def tokenizer(self) -> Any:
        """The base's, from transformers."""

    @property
    def votes(self) -> VotesSource:
        """Where votes come from."""

    @property
    def team(self) -> Team:
        """The processes that share the work."""


@dataclass(frozen=True, slots=True)
class Read:
    """Features of all voted answers by block, their tokens' covariance, and what they were read with."""

    pooled: dict[str, Array]
    spread: dict[str, Array]
    layers: tuple[int, ...]
    vocabulary: Vocabulary


def read_features(
    tools: ReadingTools,
    config: TrainConfig,
    data: TrainingData,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Read:
    """Run the voted answers through the base, as far as that has never been done, and keep the result in a file."""
    folder: Path = tools.paths.train / "reward"
    vocabulary = vocabulary_for(folder, tools.tokenizer, tools.base.head.shape[0], data.prompts.all)
    layers = layers_of(tools.base.depth, config.reward.depths)
    reader = FeatureReader(tools.base, layers, vocabulary, folder, config.reward.batch_tokens, tools.team)
    pooled = reader.read(data.votes.answers, progress)
    return Read(pooled, reader.token_covariance(), layers, vocabulary)
