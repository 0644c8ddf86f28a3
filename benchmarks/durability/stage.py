"""One installation under trial: its database, its broker or brokers, and the processes that are killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from benchmarks.durability.kafka import KafkaNode, free_ports, kafka_nodes, leader
from benchmarks.durability.parts import EmbeddedBrokerPart, Part, PostgresPart, ProcessPart, RelayPart, python
from benchmarks.durability.training import SETTINGS, make_model
from benchmarks.waiting import wait_until
from deploy.config import HustingsConfig, to_toml
from feedback.config import FeedbackConfig
from feedback.contracts import VOTE_TOPIC
from serve.config import RatingsConfig, ServeConfig
from tests.feedback.brokers import KAFKA_ENV, kafka_script
from tests.postgres import find_binaries, running_postgres

LogKind = Literal["embedded", "kafka", "kafka3"]
LedgerKind = Literal["sqlite", "postgres"]
PARTITIONS = 3
QUICK: dict[str, Any] = {
    "receipt_timeout_s": 10.0,
    "curate_linger_s": 0.2,
    "curator_metrics_port": 0,
    "partitions": PARTITIONS,
}
"""Shorter waits than by default, so that repeats happen while the trial lasts."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1", "HUSTINGS_LOG_FORMAT": "console", "NO_COLOR": "1"}
READER = "reader"
UP_S = 120.0


class NotHere(Exception):
    """What the case needs isn't on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Stage:
    """Everything that runs.

    Attributes:
        file: the configuration's.
        parts: what may be killed, in the order of starting.
        forgets: whether the event log forgets when its broker is killed.
    """

    config: HustingsConfig
    file: Path
    urls: tuple[str, ...]
    bootstrap: str
    parts: tuple[Part, ...]
    forgets: bool

    @property
    def ledger_url(self) -> str:
        """The ledger's address."""
        return self.config.feedback.ledger_url or self.config.paths.ledger_url

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)

    def kinds(self) -> list[str]:
        """What may be drawn as a victim: the brokers of a cluster are one kind, its leader. The reader only looks."""
        names = [part.name for part in self.parts if part.name != READER]
        alone = [name for name in names if not name.startswith("kafka-")]
        return alone if len(alone) == len(names) else [*alone, "leader"]

    def victim(self, kind: str, rng: random.Random) -> Part:
        """The part to kill: of a cluster the leader of a partition of the votes, drawn; else the part itself."""
        if kind != "leader":
            return self.part(kind)
        found = leader(self.bootstrap, VOTE_TOPIC, rng.randrange(PARTITIONS))
        return self.part(f"kafka-{found or rng.randint(1, 3)}")

    def wait_ready(self, timeout_s: float = UP_S) -> None:
        """Return when every serving answers `/readyz`.

        Raises:
            TimeoutError: it doesn't in time.
        """
        try:
            wait_until(lambda: all(_ready(url) for url in self.urls), timeout_s, 0.1)
        except TimeoutError as error:
            raise TimeoutError(f"serving was not ready: {error}") from error


@contextmanager
def staged(
    log: LogKind, ledger: LedgerKind, folder: Path, *, servings: int = 1, curators: int = 1, trainer: bool = True
) -> Iterator[Stage]:
    """Everything started and ready; ended with the block.

    Args:
        servings: more than one need a PostgreSQL; each has a relay.
        curators: more than one share the partitions, and one dataset folder.
        trainer: whether one trains, in cycle after cycle.

    Raises:
        NotHere: no Apache Kafka, or no PostgreSQL.
    """
    with ExitStack() as stack:
        database = _database(ledger, stack)
        brokers, bootstrap = _brokers(log, folder, stack)
        config = HustingsConfig(
            data_dir=folder / "data",
            model=str(make_model(folder / "model")),
            train=SETTINGS,
            serve=ServeConfig(shutdown_grace_s=1, ratings=RatingsConfig(votes_per_minute=0)),
            feedback=FeedbackConfig(kafka=bootstrap, ledger_url=database[1], **QUICK),
        )
        config.paths.create()
        file = folder / "hustings.toml"
        file.write_text(to_toml(config))
        made = [_serving(config, folder, name) for name in _names("serve", servings)]
        curate, train = (python("-m", "deploy", verb, "--config", str(file)) for verb in ("curate", "train"))
        processes = [
            *(process for process, _ in made),
            *(_process(name, curate, folder) for name in _names("curate", curators)),
            *(_process(name, train, folder) for name in _names("train", int(trainer))),
            _process(READER, python("-m", "benchmarks.durability.reader", str(config.data_dir)), folder),
        ]
        relays = [RelayPart(name, one) for name, (one, _) in zip(_names("relay", servings), made, strict=True)]
        for process in processes:
            stack.callback(process.stop)
            process.start()
        parts = (*database[0], *brokers, *relays, *processes)
        stage = Stage(config, file, tuple(url for _, url in made), bootstrap, parts, forgets=log == "embedded")
        stage.wait_ready()
        yield stage


def _names(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind}-{number + 1}" for number in range(count)]


def _serving(config: HustingsConfig, folder: Path, name: str) -> tuple[ProcessPart, str]:
    """A serving on a port of its own, and its address."""
    port = free_ports(1)
    file = folder / f"{name}.toml"
    mine = config.model_copy(update={"serve": config.serve.model_copy(update={"port": port})})
    file.write_text(to_toml(mine))
    command = python("-m", "benchmarks.durability.serving", str(file))
    return _process(name, command, folder), f"http://127.0.0.1:{port}"


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _process(name: str, command: list[str], folder: Path) -> ProcessPart:
    return ProcessPart(name, command, folder / f"{name}.log", ENVIRONMENT)


def _database(kind: LedgerKind, stack: ExitStack) -> tuple[list[Part], str | None]:
    """The database's part and address. SQLite has neither: it is in serving's process, and dies with it."""
    if kind == "sqlite":
        return [], None
    binaries = find_binaries()
    if binaries is None:
        raise NotHere("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    server = stack.enter_context(running_postgres(binaries))
    return [PostgresPart(server)], server.new_database("hustings")


def _brokers(kind: LogKind, folder: Path, stack: ExitStack) -> tuple[list[Part], str]:
    if kind == "embedded":
        broker = EmbeddedBrokerPart(folder / "broker.log")
        stack.callback(broker.stop)
        broker.start()
        return [broker], broker.address
    script = kafka_script()
    if script is None:
        raise NotHere(f"Apache Kafka is not at hand; set {KAFKA_ENV} to the start script of one")
    nodes = kafka_nodes(script, folder, 1 if kind == "kafka" else 3)
    for node in nodes:
        stack.callback(node.stop)
        node.start()
    wait_for_nodes(nodes)
    return [*nodes], ",".join(node.address for node in nodes)


def wait_for_nodes(nodes: list[KafkaNode], timeout_s: float = UP_S) -> None:
    """Return when every node takes connections.

    Raises:
        TimeoutError: one doesn't in time.
    """
    try:
        wait_until(lambda: all(node.listens() for node in nodes), timeout_s, 0.2)
    except TimeoutError as error:
        raise TimeoutError(f"Kafka did not listen on every node: {error}") from error
