"""One whole Hustings for all end-to-end tests of a session: they run in the order of the file, as a day would."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, running

SETTINGS: dict[str, object] = {
    "train.schedule.new_comparisons": 24,
    "train.schedule.poll_s": 0.5,
    "train.schedule.niceness": 0,
    "train.threads": 1,
    "serve.threads": 1,
    "train.schedule.metrics_port": 0,
    "train.ppo.iterations": 6,
    "train.ppo.episodes": 64,
    "train.ppo.learning_rate": 3e-3,
    "train.rollout.max_tokens": 16,
    "train.schedule.eval_prompts": 64,
    # A model of noise answers in noise: its perplexity and bigrams tell nothing of fluency, and a word that it has in
    # common with its prompt is chance.
    "train.governor.max_perplexity_ratio": 5.0,
    "train.governor.max_kl": 100,
    "train.governor.min_distinct_ratio": 0.5,
    "train.governor.min_topic_ratio": 0,
    "train.governor.topic_price": 0,
    "train.governor.topic_aim": 0,
    "serve.default_max_tokens": 16,
    "serve.kv_cache_gib": 0.25,
    "feedback.curator_metrics_port": 0,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The running system on the tiny model."""
    data_dir = tmp_path_factory.mktemp("up") / "data"
    with running(data_dir, tiny_model, free_port(), SETTINGS) as started:
        yield started
