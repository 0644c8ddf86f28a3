"""Serving as it is (HTTP, ledger, relay), but with the tests' instant engine: what is tried here is not the model.

python -m benchmarks.durability.serving CONFIG
"""

from __future__ import annotations

import sys
from pathlib import Path

import serve.main
from deploy.config import load
from tests.fakes.engine import FakeEngine


def main(config_file: Path) -> int:
    """Serve until a signal; the exit status."""
    config = load(config_file)
    assert config.feedback.kafka is not None, "the harness names a broker"
    assert config.model is not None, "the harness makes a model, for the trainer"
    serve.main.build_engine = lambda model, config: FakeEngine()
    return serve.main.run(config.serve, config.feedback, config.paths, config.model, config.feedback.kafka)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
