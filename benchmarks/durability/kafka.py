"""Apache Kafka, one broker or three, from a start script (HUSTINGS_TEST_KAFKA); and who leads a partition now."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from benchmarks.durability.parts import ProcessPart
from feedback.broker import HOST


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on.

    Raises:
        RuntimeError: none were found.
    """
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((HOST, 0))
            port = int(first.getsockname()[1])
            try:
                for more in range(1, count):
                    stack.enter_context(socket.socket()).bind((HOST, port + more))
            except (OSError, OverflowError):
                continue
            return port
    raise RuntimeError(f"no {count} free ports in a row")


def kafka_nodes(script: Path, folder: Path, nodes: int) -> list[KafkaNode]:
    """The brokers, not started yet: node K listens on the K-th address of `bootstrap`."""
    port = free_ports(2 * nodes)
    made = []
    for node in range(1, nodes + 1):
        command = [str(script), "--data-dir", str(folder / f"node-{node}"), "--port", str(port)]
        if nodes > 1:
            command += ["--node", str(node), "--nodes", str(nodes)]
        # Three nodes elect a controller first, so a node's port is waited for by whoever starts them all.
        mine = port + 2 * (node - 1)
        made.append(KafkaNode(f"kafka-{node}" if nodes > 1 else "broker", command, folder / f"{node}.log", mine))
    return made


class KafkaNode(ProcessPart):
    """One broker. What it acknowledged outlives its kill."""

    def __init__(self, name: str, command: list[str], log: Path, port: int) -> None:
        super().__init__(name, command, log, {})
        self.address = f"{HOST}:{port}"

    def listens(self) -> bool:
        """Whether clients can connect."""
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=0.5):
            return True
        return False


def leader(bootstrap: str, topic: str, partition: int) -> int | None:
    """Number (from 1) of the node that leads a partition; None where that can't be told just now."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap.split(","), bootstrap_timeout_ms=3_000)
        try:
            described = admin.describe_topics([topic])[0]["partitions"]
        finally:
            admin.close()
    except (KafkaError, OSError, RuntimeError):
        return None
    found = [one["leader_id"] for one in described if one["partition_index"] == partition]
    return int(found[0]) if found and found[0] > 0 else None
