"""When pairs are prepared for people to judge (train.review), and what becomes of trouble. Imports no torch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from feedback.dataset.errors import DatasetError
from train.config import TrainConfig
from train.cycle_state import CycleState
from train.errors import NotEnoughVotes, TrainError
from train.process import shortage

if TYPE_CHECKING:
    from feedback.dataset import Dataset
    from train.rollout import ServingRollouts

RETRY_S = 120.0
"""Wait before pairs are prepared again, where that failed."""
log = structlog.get_logger()


class Reviews:
    """Prepares a pool once for each reward model, between cycles.

    Args:
        tools: a cycle's, for as long as the context lasts.
        office: folder of the adapter in office; None for the base.
        served: samples from serving; None where the trainer knows of none: then nothing is prepared.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        tools: Callable[[], AbstractContextManager[Any]],
        office: Callable[[], Path | None],
        served: Callable[[], ServingRollouts] | None,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._tools = tools
        self._office = office
        self._served = served
        self._done: str | None = None
        self._again = -float("inf")

    def due(self, last: CycleState) -> bool:
        """Whether the last cycle's reward model has prepared none yet, and could."""
        reward = self._config.reward
        wanted = self._config.review.prompts > 0 and reward.head == "mix" and reward.members > 1
        could = self._served is not None and time.monotonic() >= self._again
        return wanted and could and last.reward_model not in {None, self._done}

    def prepare(self, last: CycleState) -> None:
        """Prepare pairs; what goes wrong is told, and the trainer goes on waiting for votes."""
        from train.review import prepare_pool

        assert self._served is not None
        self._again = time.monotonic() + RETRY_S
        try:
            with self._tools() as tools:
                office = self._office()
                name = office.name if office else None
                pairs = prepare_pool(tools, self._config, last, name, self._served(), self._dataset)
        except NotEnoughVotes as error:
            # Its snapshot stays what it is: asking again would only load the base again.
            self._done = last.reward_model
            log.warning("reviews_not_prepared", reason=str(error), next="after the next cycle")
            return
        except Exception as error:
            line = shortage(error, self._config, "features")
            if line is None and not isinstance(error, TrainError | DatasetError | OSError):
                raise
            log.warning("reviews_not_prepared", reason=line or str(error), next=f"again in {RETRY_S:.0f} s")
            return
        finally:
            gc.collect()
        self._done = last.reward_model
        log.info("reviews_prepared", pairs=pairs, reward_model=last.reward_model)
