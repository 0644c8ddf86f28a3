"""A member of a group in a process of its own, to be killed: prints a line for each record, never commits."""

from __future__ import annotations

import sys

from feedback.kafka_log import KafkaEventLog

if __name__ == "__main__":
    address, topic, group = sys.argv[1:]
    consumer = KafkaEventLog(address).consumer([topic], group)
    while True:
        for record in consumer.poll(0.5):
            sys.stdout.write(f"{record.offset}\n")
            sys.stdout.flush()
