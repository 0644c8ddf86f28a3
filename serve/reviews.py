"""Review pairs: answers that lie prepared, chosen by the trainer because a vote on them would tell much.

A file is the interface (`DataPaths.review_pool`): the trainer writes a new one now and then, serving offers its pairs
to whoever wants to judge, each person a pair that they haven't seen, the least shown first. From there on it is a pair
like any other: recorded before it is shown, voted on by its voter alone, its propensity logged.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import structlog
from pydantic import ValidationError

from feedback.contracts import REVIEW_RULE, PairShown, ReviewItem, ReviewPool
from serve.rate_limit import REMEMBERED

log = structlog.get_logger(__name__)


class ReviewShelf:
    """What is prepared now, and who has seen what of it. For any thread; it may read the disk.

    What was shown is remembered by this process alone, and of so many voters: after a restart, or when very many have
    come since, somebody may be shown a pair again.

    Args:
        fingerprint: of the base served; a pool of another base's answers is left alone.
        rng: draws.
    """

    def __init__(self, file: Path, fingerprint: Callable[[], str], rng: random.Random) -> None:
        self._file = file
        self._fingerprint = fingerprint
        self._rng = rng
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._trouble: int | None = None
        self._pool: ReviewPool | None = None
        self._shown: Counter[str] = Counter()
        self._seen: OrderedDict[str, set[str]] = OrderedDict()

    def waiting(self, voter: str) -> int:
        """How many pairs there are that this voter hasn't seen."""
        with self._lock:
            return len(self._unseen(voter))

    def take(self, voter: str) -> PairShown | None:
        """A pair for this voter, to be recorded and shown; None where there is none that they haven't seen."""
        with self._lock:
            unseen = self._unseen(voter)
            if not unseen or self._pool is None:
                return None
            least = min(self._shown[item.item_id] for item in unseen)
            offered = [item for item in unseen if self._shown[item.item_id] == least]
            item = self._rng.choice(offered)
            self._shown[item.item_id] += 1
            self._note_seen(voter, item.item_id)
            return self._pair(item, voter, self._pool, 1 / len(offered))

    def _pair(self, item: ReviewItem, voter: str, pool: ReviewPool, chance: float) -> PairShown:
        left, right = self._rng.sample(item.completions, 2)
        return PairShown(
            pair_id=f"pair_{uuid4().hex}",
            conversation_id=f"conv_{uuid4().hex}",
            voter=voter,
            messages=item.messages,
            completions=(
                left.model_copy(update={"position": "a"}),
                right.model_copy(update={"position": "b"}),
            ),
            contenders=REVIEW_RULE,
            propensity=item.propensity * chance / 2,
            base_model=pool.base_model,
            prompt_token_ids=item.prompt_token_ids,
            source="review",
        )

    def _unseen(self, voter: str) -> list[ReviewItem]:
        self._look()
        items = () if self._pool is None else self._pool.items
        seen = self._seen.get(voter, ())
        return [item for item in items if item.item_id not in seen]

    def _note_seen(self, voter: str, item_id: str) -> None:
        self._seen.setdefault(voter, set()).add(item_id)
        self._seen.move_to_end(voter)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _look(self) -> None:
        """Read the pool where it is another than last time."""
        try:
            found = self._file.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return
            self._pool = self._read()
        except OSError as error:
            self._note_trouble(error)
            self._stamp, self._pool = None, None
            return
        self._stamp, self._trouble = stamp, None
        self._shown.clear()
        self._seen.clear()

    def _note_trouble(self, error: OSError) -> None:
        """No pool is no trouble; one that can't be read is looked at again each time, and told of once."""
        if not isinstance(error, FileNotFoundError) and error.errno != self._trouble:
            log.warning("review pool can't be read", file=str(self._file), reason=error.strerror)
        self._trouble = error.errno

    def _read(self) -> ReviewPool | None:
        try:
            pool = ReviewPool.model_validate_json(self._file.read_bytes())
        except ValidationError as error:
            log.warning("review pool not understood", file=str(self._file), faults=error.error_count())
            return None
        if pool.base_fingerprint != self._fingerprint():
            log.warning("review pool is of another base", file=str(self._file))
            return None
        return pool
