"""The serving process as it is, on an engine that nobody asks anything.

python -m benchmarks.votes.server --data-dir DIR --port PORT --kafka HOST:PORT [--ledger URL]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import serve.main
from feedback.config import FeedbackConfig
from feedback.paths import DataPaths
from serve.config import ServeConfig
from tests.fakes.engine import FakeEngine


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--ledger")
    parser.add_argument("--switch-interval", type=float, help="seconds that a thread may hold the interpreter's lock")
    parser.add_argument("--relay-inside", action="store_true", help="feedback.relay_apart = false")
    arguments = parser.parse_args()
    if arguments.switch_interval is not None:
        sys.setswitchinterval(arguments.switch_interval)
    serve.main.build_engine = lambda model, config: FakeEngine()
    # Nobody curates here, and a second sending would be measured with the first.
    feedback = FeedbackConfig(
        ledger_url=arguments.ledger, receipt_timeout_s=3600.0, relay_apart=not arguments.relay_inside
    )
    config = ServeConfig(port=arguments.port)
    raise SystemExit(serve.main.run(config, feedback, DataPaths(arguments.data_dir), "none", arguments.kafka))


if __name__ == "__main__":
    main()
