"""One JSON object with everything that the Loop page shows."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from feedback.contracts import ReleaseState
from feedback.ledger import Release
from serve.deps import ServeDeps
from serve.leaderboard import choices, left_share

STATUS_FILE = "status.json"
LAST_CYCLES = 20
PACE_WINDOW_S = 300.0
_APART = frozenset({"cycles", "dataset"})
"""Keys of the trainer's status that have a place of their own on the page."""


class Pace:
    """Votes a minute over the last five minutes, of this process."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._times: deque[float] = deque()

    def note(self) -> None:
        """A vote came."""
        self._times.append(time.monotonic())

    def per_minute(self) -> float:
        """The rate; over the time since the start where that is shorter, but a minute at least."""
        now = time.monotonic()
        while self._times and self._times[0] < now - PACE_WINDOW_S:
            self._times.popleft()
        window = min(PACE_WINDOW_S, max(60.0, now - self._began))
        return round(len(self._times) * 60.0 / window, 2)


def loop_status(deps: ServeDeps, pace: Pace) -> dict[str, Any]:
    """Read the ledger and the trainer's status file; blocks."""
    counts = deps.ledger.counts()
    tallies = deps.ledger.tallies()
    outbox = deps.ledger.outbox_stats()
    releases = deps.ledger.releases()
    load = deps.engine.load()
    trainer = read_status(deps.paths.train / STATUS_FILE)
    return {
        "now": datetime.now(UTC).isoformat(),
        "ready": deps.readiness.reason is None,
        "not_ready_reason": deps.readiness.reason,
        "base_model": deps.base_model,
        "chat": {
            "conversations": counts.conversations,
            "pairs": counts.pairs,
            "running": load.running,
            "waiting": load.waiting,
        },
        "engine": {"kv_cache_usage": load.kv_cache_usage, "adapters": sorted(deps.engine.adapters())},
        "votes": {
            "total": counts.votes,
            **choices(tallies),
            "left_share": left_share(tallies),
            "per_minute": pace.per_minute(),
        },
        "outbox": {
            "pending": outbox.pending,
            "unconfirmed": outbox.unconfirmed,
            "oldest_pending_age_s": outbox.oldest_pending_age_s,
        },
        "dataset": trainer.get("dataset"),
        "training": {key: value for key, value in trainer.items() if key not in _APART} or None,
        "office": {"adapter": deps.office.holder, "since": _since(releases, deps.office.holder)},
        "releases": [release_row(release) for release in reversed(releases)],
        "cycles": (trainer.get("cycles") or [])[-LAST_CYCLES:],
    }


def read_status(path: Path) -> dict[str, Any]:
    """What the trainer last wrote of itself; empty where it has written nothing, or nothing readable."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def release_row(release: Release) -> dict[str, Any]:
    """A release as the pages and the API show it."""
    manifest = release.manifest
    return {
        "name": release.name,
        "state": release.state.value,
        "reason": release.reason,
        "actor": release.actor,
        "updated_at": release.updated_at.isoformat(),
        "parent": manifest.parent if manifest else None,
        "snapshot": manifest.snapshot if manifest else None,
        "reward_model": manifest.reward_model if manifest else None,
        "metrics": manifest.metrics if manifest else {},
    }


def _since(releases: list[Release], holder: str | None) -> str | None:
    for release in releases:
        if release.name == holder and release.state is ReleaseState.IN_OFFICE:
            return release.updated_at.isoformat()
    return None
