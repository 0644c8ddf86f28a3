"""Which events the parts hold: an index of ids that lies on the disk, so that any number of them fits the memory.

It is a private, unnamed SQLite database that vanishes with the process: nothing to share, to lock or to mend, and the
parts alone are the record. It is read from their id columns once, and then grows with them.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from feedback.dataset.errors import DatasetFull

T = TypeVar("T")
CACHE_KIB = 32_768
_CHUNK = 500


class IdIndex:
    """Ids with their kinds, and how many of each kind are news against a set of old ones.

    Every method raises DatasetFull where the folder for temporary files has no room. The index is `lost` then: it has
    no journal to go back by, and its owner makes another.

    Attributes:
        lost: a write failed; what it says means nothing any more.
    """

    lost = False

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._db.close)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, kind TEXT NOT NULL) WITHOUT ROWID")
        self._db.execute("CREATE TABLE old (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._news: Counter[str] = Counter()

    def __contains__(self, event_id: str) -> bool:
        with self._told():
            return self._db.execute("SELECT 1 FROM ids WHERE id = ?", (event_id,)).fetchone() is not None

    def __len__(self) -> int:
        with self._told():
            found: int = self._db.execute("SELECT count(*) FROM ids").fetchone()[0]
            return found

    def unknown(self, event_ids: Iterable[str]) -> set[str]:
        """Those of the ids that the index lacks."""
        wanted = set(event_ids)
        return wanted - self._found_in("ids", wanted)

    def add(self, rows: Iterable[tuple[str, str]]) -> int:
        """Add ids with their kinds; what is there stays. Returns how many were new."""
        added = 0
        for chunk in _chunks(rows):
            kinds = dict(reversed(chunk))
            fresh = self.unknown(kinds)
            news = fresh - self._found_in("old", fresh)
            with self._told(), self._db:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT INTO ids VALUES (?, ?)", [(new, kinds[new]) for new in fresh])
            self._news.update(kinds[new] for new in news)
            added += len(fresh)
        return added

    def set_old(self, event_ids: Iterable[str]) -> None:
        """What `news` counts against, from now on."""
        with self._told(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM old")
            self._db.executemany("INSERT OR IGNORE INTO old VALUES (?)", ((event_id,) for event_id in event_ids))
            counted = self._db.execute(
                "SELECT kind, count(*) FROM ids WHERE NOT EXISTS (SELECT 1 FROM old WHERE old.id = ids.id) "
                "GROUP BY kind"
            )
            self._news = Counter(dict(counted.fetchall()))

    def news(self) -> Mapping[str, int]:
        """How many ids of each kind are not among the old ones."""
        return self._news

    def _found_in(self, table: str, event_ids: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for chunk in _chunks(event_ids):
            query = f"SELECT id FROM {table} WHERE id IN ({','.join('?' * len(chunk))})"  # noqa: S608
            with self._told():
                found.update(row[0] for row in self._db.execute(query, chunk))
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn a failure of the database into one of ours, and be lost."""
        try:
            yield
        except sqlite3.Error as error:
            self.lost = True
            raise DatasetFull(
                f"the index of ids can't be kept in the folder for temporary files ({error}); free some space there, "
                "or name another folder with SQLITE_TMPDIR: nothing is lost, the parts are read again"
            ) from error


def _chunks(items: Iterable[T]) -> Iterator[Sequence[T]]:
    left = iter(items)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk
