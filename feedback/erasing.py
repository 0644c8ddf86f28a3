"""Taking out of the event log what the curators have: forgotten voters' records, and what fills a broker's memory.

The ledger and the dataset forget at once; a broker keeps records until their retention ends, and the embedded one until
it stops. Everybody's records that the curators have read go together with a forgotten voter's: the log can only drop
what came before a place, and the ledger has the record of the rest (`hustings replay` sends it again, without them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog
from prometheus_client import Gauge

from feedback.config import FeedbackConfig
from feedback.contracts import DEAD_LETTER_TOPIC, FORGOTTEN_TOPIC, PAIR_TOPIC, RECEIPT_TOPIC, THUMB_TOPIC, VOTE_TOPIC
from feedback.dataset import Dataset
from feedback.event_log import ErasableEventLog, EventLogError, Place

logger = structlog.get_logger(__name__)

PEOPLES_TOPICS = (PAIR_TOPIC, VOTE_TOPIC, THUMB_TOPIC)
"""They hold people's words, as the dead letters do: those nobody reads as a group, and they stay on the disk."""
PASSING_TOPICS = (*PEOPLES_TOPICS, DEAD_LETTER_TOPIC, FORGOTTEN_TOPIC, RECEIPT_TOPIC)
"""All that the ledger sends again where it isn't confirmed, or that confirms it, and the dead letters."""
IN_FLIGHT_S = 60.0
"""A relay may still be sending what it had read of the ledger before the voter was forgotten: so long at most."""
LOOK_S = 10.0

UNERASED = Gauge("hustings_curator_unerased", "Forgotten voters whose records may still lie in the event log")


class Eraser:
    """Looks now and then whether something is to go. Trouble with the broker only makes it try again.

    Args:
        read_by: the group that has to have read what goes.
        clock, wall: for tests.
    """

    def __init__(
        self,
        log: ErasableEventLog,
        dataset: Dataset,
        config: FeedbackConfig,
        read_by: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._dataset = dataset
        self._config = config
        self._read_by = read_by
        self._clock = clock
        self._wall = wall
        self._next = 0.0
        self._bytes = 0
        self._asked: frozenset[str] = frozenset()
        self._ends: Mapping[Place, int] | None = None
        self._trouble: str | None = None

    def has_read(self, size: int) -> None:
        """So many bytes more were read, which a broker may hold in its memory."""
        self._bytes += size

    def look(self, behind: int = 0) -> bool:
        """Do what is due. To be called between batches, when the offsets are committed.

        Args:
            behind: records that are not read yet. Renewed topics lose them, and the ledger would send them all again:
                while there are many, as in a replay, the broker keeps its topics.

        Returns:
            Whether topics were made anew: who reads them begins again at once, and doesn't wait until it finds out.
        """
        if self._clock() < self._next:
            return False
        self._next = self._clock() + LOOK_S
        renewed = False
        try:
            renewed = self._look(may_renew=behind <= self._config.curate_batch)
            self._trouble = None
        except EventLogError as error:
            if self._trouble != str(error):
                logger.warning(
                    "records of forgotten voters can't be taken out of the event log yet; trying again. It needs the "
                    "right to delete records of the topics (or set feedback.erase = false)",
                    error=str(error),
                )
            self._trouble = str(error)
        return renewed

    def _look(self, *, may_renew: bool) -> bool:
        renewed = False
        waiting = self._dataset.unerased() if self._config.erase else {}
        UNERASED.set(len(waiting))
        # A clock that was set back: nothing can have been asked for later than now.
        ripe = frozenset(name for name, asked in waiting.items() if not 0 <= self._wall() - asked < IN_FLIGHT_S)
        full = self._bytes > self._config.broker_holds_mb << 20
        if self._ends is None and (ripe or full):
            self._asked = ripe
            if not self._log.in_memory():
                self._bytes = 0
                self._ends = self._log.ends(PEOPLES_TOPICS) if ripe else None
            elif may_renew:
                self._log.renew(PASSING_TOPICS)
                renewed = True
                logger.info("the broker's memory was emptied: everything in it is stored", read_mb=self._bytes >> 20)
                self._erased()
        if self._ends is not None and self._log.erase(self._ends, self._read_by):
            self._log.erase(self._log.ends([DEAD_LETTER_TOPIC]), None)
            self._erased()
        return renewed

    def _erased(self) -> None:
        self._dataset.erased(self._asked)
        if self._asked:
            logger.info("records of forgotten voters taken out of the event log", voters=len(self._asked))
        UNERASED.set(len(self._dataset.unerased()))
        self._asked, self._ends, self._bytes = frozenset(), None, 0
