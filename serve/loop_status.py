"""One JSON object with everything that the Loop page shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from feedback.contracts import ReleaseState
from feedback.ledger import Ledger, Release
from serve.deps import ServeDeps
from serve.leaderboard import choices, left_interval, left_share
from serve.releases.election import Election
from serve.releases.referee import Standing

STATUS_FILE = "status.json"
BASE = "base"
LAST_CYCLES = 20
NEWEST_RELEASES = 20
"""Releases that the page is told of each time, beside as many that are in office, canary or waiting."""
PACE_WINDOW = timedelta(minutes=5)
SHORTEST_PACE = timedelta(minutes=1)
_APART = frozenset({"cycles", "dataset"})
"""Keys of the trainer's status that have a place of their own on the page."""
_FORMS: dict[str, type] = {"cycles": list, "dataset": dict}
"""What these are where the file is the trainer's; a file of somebody else's takes the page from nobody."""


def loop_status(deps: ServeDeps) -> dict[str, Any]:
    """Read the ledger and the trainer's status file; blocks."""
    now = datetime.now(UTC)
    counts = deps.ledger.counts()
    tallies = deps.tallies()
    outbox = deps.ledger.outbox_stats()
    newest, totals = deps.ledger.release_page(limit=NEWEST_RELEASES), deps.ledger.release_totals()
    releases = _together(newest.releases, deps.ledger.standing_releases(NEWEST_RELEASES))
    load = deps.engine.load()
    trainer = read_status(deps.paths.train / STATUS_FILE)
    return {
        "now": now.isoformat(),
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
            "left_share_interval": left_interval(tallies),
            "per_minute": votes_per_minute(deps.ledger, now),
        },
        "thumbs": asdict(deps.ledger.thumb_counts()),
        "outbox": {
            "pending": outbox.pending,
            "unconfirmed": outbox.unconfirmed,
            "oldest_pending_age_s": outbox.oldest_pending_age_s,
        },
        "dataset": trainer.get("dataset"),
        "training": {key: value for key, value in trainer.items() if key not in _APART} or None,
        "office": {"adapter": deps.office.holder, "since": _since(releases, deps.office.holder)},
        "releases": [release_row(release) for release in releases],
        "release_pages": {"total": totals.total, "change": totals.change, "next": newest.next},
        "gate": gate_status(deps),
        "cycles": [cycle for cycle in trainer.get("cycles", []) if isinstance(cycle, dict)][-LAST_CYCLES:],
    }


def gate_status(deps: ServeDeps) -> dict[str, Any]:
    """What puts an adapter into office, and whether an operator has paused it; blocks."""
    changes = deps.ledger.gate_history()
    last = changes[-1].model_dump(mode="json", exclude={"schema_version"}) if changes else {"paused": False}
    return {"mode": deps.config.releases.gate, **last}


def elections(election: Election) -> dict[str, Any]:
    """How canary and office-holder stand as of the last look at the votes."""
    return {"canary": standing_row(election.canary), "alarm": standing_row(election.alarm)}


def standing_row(standing: Standing | None) -> dict[str, Any] | None:
    """A contest as the pages and the API show it."""
    if standing is None:
        return None
    row = asdict(standing)
    contest, outcome = row.pop("contest"), row.pop("outcome")
    return {
        "adapter": contest["adapter"],
        "opponent": contest["opponent"] or BASE,
        "since": standing.contest.since.isoformat(),
        **row,
        "guards": outcome["guards"],
    }


def votes_per_minute(ledger: Ledger, now: datetime) -> float:
    """Votes a minute over the last five minutes; since the first of these where it is less long ago, but a minute."""
    votes, first = ledger.votes_since(now - PACE_WINDOW)
    if first is None:
        return 0.0
    return round(votes / (max(now - first, SHORTEST_PACE) / timedelta(minutes=1)), 2)


def read_status(path: Path) -> dict[str, Any]:
    """What the trainer last wrote of itself; empty where it has written nothing, or nothing readable."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    status = found if isinstance(found, dict) else {}
    return {key: value for key, value in status.items() if isinstance(value, _FORMS.get(key, object))}


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
        "unreadable": release.unreadable,
    }


def _together(newest: Iterable[Release], standing: Iterable[Release]) -> list[Release]:
    """Each once, the newest adapter first."""
    found = {release.name: release for release in (*newest, *standing)}
    return sorted(found.values(), key=lambda release: release.name, reverse=True)


def _since(releases: list[Release], holder: str | None) -> str | None:
    for release in releases:
        if release.name == holder and release.state is ReleaseState.IN_OFFICE:
            return release.updated_at.isoformat()
    return None
