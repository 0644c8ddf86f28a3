"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import contextlib
import math

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from feedback.ledger import LedgerUnavailable
from serve.deps import Deps, ServeDeps, on_thread
from serve.http import FastJSON
from serve.metrics import Metrics
from serve.routes.problems import PROBLEMS
from serve.vote_book import VoteNews

router = APIRouter(tags=["operations"])


class PrometheusText(Response):
    """Prometheus' text format; a class of its own, so that the OpenAPI document names the type."""

    media_type = CONTENT_TYPE_LATEST


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=None)
async def healthz() -> Response:
    """The process answers. Says nothing of the engine: that is /readyz."""
    return FastJSON({"status": "alive"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=None, responses={503: PROBLEMS[503]})
async def readyz(deps: Deps) -> Response:
    """The engine is up, the office-holder is loaded and probed, the ledger answers."""
    deps.readiness.require()
    await deps.engine.check_health()
    await on_thread(deps.ledger.office)
    return FastJSON({"status": "ready", "office": deps.office.holder})


@router.get("/metrics", response_class=PrometheusText)
async def metrics(deps: Deps) -> Response:
    """Prometheus' text format."""
    news = None
    with contextlib.suppress(LedgerUnavailable):  # then above all the other metrics are wanted
        news = await deps.news.if_any()
    body = await on_thread(_scrape, deps, news)
    return PrometheusText(body)


def _scrape(deps: ServeDeps, news: VoteNews | None) -> bytes:
    metrics = deps.metrics
    figures: tuple[float, ...] = (math.nan,) * 4
    if news is not None:
        _show_votes(metrics, news)
    with contextlib.suppress(LedgerUnavailable):
        stats = deps.ledger.outbox_stats()
        figures = (stats.pending, stats.unconfirmed, stats.oldest_pending_age_s, stats.parked)
    gauges = (metrics.outbox_pending, metrics.outbox_unconfirmed, metrics.outbox_age, metrics.outbox_parked)
    for gauge, figure in zip(gauges, figures, strict=True):
        gauge.set(figure)
    return generate_latest(metrics.registry)


def _show_votes(metrics: Metrics, news: VoteNews) -> None:
    for bound, figure in zip(("estimate", "low", "high"), news.left or (math.nan,) * 3, strict=True):
        metrics.left_share.labels(bound).set(figure)
    for trust, voters in news.trust().items():
        metrics.voters.labels(trust).set(voters)
