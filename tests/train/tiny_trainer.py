"""A trainer as `hustings train` makes it, without broker and serving unless they are given."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedback.config import FeedbackConfig
from feedback.paths import DataPaths
from train import main
from train.config import TrainConfig


class Observed(main.TerminalProgress):
    """Hands every status on."""

    def __init__(self, observe: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(sys.stderr)
        self._tell = observe

    def observe(self, status: dict[str, Any]) -> None:
        """Hand it on, and show nothing."""
        self._tell(status)


def make_trainer(
    paths: DataPaths,
    model: Path,
    config: dict[str, Any],
    stop: threading.Event | None = None,
    *,
    observe: Callable[[dict[str, Any]], None] | None = None,
    bootstrap: str | None = None,
    serve_url: str | None = None,
) -> main.Trainer:
    """Args:
    config: `[train]`.
    observe: is told every status.
    """
    return main.Trainer(
        config=TrainConfig.model_validate(config),
        feedback=FeedbackConfig(),
        paths=paths,
        model=str(model),
        bootstrap=bootstrap,
        serve_url=serve_url,
        operator_token="secret" if serve_url else None,
        stop=stop or threading.Event(),
        metrics=main.TrainMetrics(),
        progress=Observed(observe) if observe else main.TerminalProgress(sys.stderr),
    )
