"""What the benchmarks of the votes share: a folder, a broker, the figures' way out."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.feedback.brokers import KAFKA_ENV, ApacheKafka, Embedded


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = os.environ.get(KAFKA_ENV)
    made.add_argument("--kafka-script", type=Path, default=Path(named) if named else None, help="of Apache Kafka")
    made.add_argument("--dir", type=Path, help="where the passing files lie: on the disk that matters")
    made.add_argument("--out", type=Path, help="write the figures here too")
    return made


@contextmanager
def staged(arguments: argparse.Namespace) -> Iterator[tuple[Path, ApacheKafka | Embedded]]:
    """A passing folder, and a running broker: the embedded one, or the Apache Kafka that was asked for."""
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        script = arguments.kafka_script
        broker = ApacheKafka(script, Path(folder) / "kafka") if script else Embedded()
        try:
            yield Path(folder), broker
        finally:
            broker.stop()


def tell(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the figures, and write them where they were asked for."""
    whole = json.dumps(found | {"broker": "Apache Kafka" if arguments.kafka_script else "embedded"}, indent=1)
    print(whole)
    if arguments.out:
        arguments.out.write_text(whole + "\n")
