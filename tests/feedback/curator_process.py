"""A curator in a process of its own that kills itself (SIGKILL) at a marked point, or runs until it is killed.

Arguments: broker's address, data folder, and "parts", "receipts", "commit" or "never".
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from feedback.config import FeedbackConfig
from feedback.curator import Curator
from feedback.dataset import Dataset
from feedback.kafka_log import KafkaEventLog

if __name__ == "__main__":
    address, folder, point = sys.argv[1:]

    def at(step: str) -> None:
        if step == point:
            os.kill(os.getpid(), signal.SIGKILL)

    config = FeedbackConfig(curate_linger_s=0.3, curate_batch=40)
    Curator(KafkaEventLog(address), Dataset(Path(folder)), config, at=at).run(threading.Event())
