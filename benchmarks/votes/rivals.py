"""What the ledger's votes are measured against: the two machines below them, alone and without any of our code."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from feedback.kafka_log import KafkaEventLog

ROW = b"x" * 200
TOPIC = "hustings-benchmark"


def producer_rate(address: str, values: Sequence[bytes], seconds: float) -> float:
    """Records a second that a kafka-python producer with acks=all (its defaults otherwise) gets acknowledged."""
    from kafka import KafkaProducer

    KafkaEventLog(address).ensure_topics([TOPIC])
    producer = KafkaProducer(bootstrap_servers=address, acks="all", max_block_ms=30_000)
    sent: list[Any] = []
    began = time.perf_counter()
    for value in cycle(values):
        sent.append(producer.send(TOPIC, value))
        if time.perf_counter() - began >= seconds:
            break
    for future in sent:
        future.get(60)
    took = time.perf_counter() - began
    producer.close()
    return len(sent) / took


def sqlite_commits(file: Path, seconds: float) -> float:
    """Commits a second of one small insert each, with the ledger's own settings, from one thread."""
    connection = sqlite3.connect(file, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, value BLOB NOT NULL)")
    commits, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (value) VALUES (?)", (ROW,))
        connection.execute("COMMIT")
        commits += 1
    connection.close()
    return commits / took


def postgres_commits(url: str, seconds: float) -> float:
    """The same on PostgreSQL, from one connection."""
    import psycopg

    commits = 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS rows (number BIGSERIAL PRIMARY KEY, value BYTEA NOT NULL)")
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            connection.execute("INSERT INTO rows (value) VALUES (%s)", (ROW,))
            commits += 1
    return commits / took
