"""The event log on Kafka's protocol: the one package that knows a Kafka client (kafka-python).

Two brokers are meant: Apache Kafka, and the embedded one of `feedback.broker`. What is peculiar here, and why:

- Every call is bounded in time. A broker that is down gives `EventLogUnavailable`, never a hang.
- Every client is made by `client.Brokers`, which knows of TLS and login; `network` mends what its connections lack.
- Topics are made by `ensure_topics` alone. The client asks brokers to make topics on sight, and in 3.0.12 the option
  that forbids it does not reach the request (`network`); a topic made by accident hides that a broker forgot.
- The embedded broker forgets everything on restart. An idempotent producer then stays broken for ever, so it is thrown
  away after any failure. A reader's old positions would skip what the new log holds, and the client never recovers from
  a topic that vanished: so ours checks the topics' ids whenever its connection was renewed and starts over with a new
  client when they changed.
- The embedded broker's end offsets are wrong; lag comes from the highwater that fetches carry.
- Nothing relies on Kafka's transactions: idempotent sends, and readers that de-duplicate by id.
"""

from __future__ import annotations

from feedback.kafka_log.apart import KafkaApart
from feedback.kafka_log.client import MAX_RECORD_BYTES
from feedback.kafka_log.log import KafkaEventLog

__all__ = ["MAX_RECORD_BYTES", "KafkaApart", "KafkaEventLog"]
