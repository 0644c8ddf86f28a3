"""`/healthz`, `/readyz`, `/metrics` and the pages."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import FileResponse, Response

from serve.deps import Deps, ServeDeps, on_thread
from serve.http import FastJSON
from serve.routes.problems import PROBLEMS

WEB = Path(__file__).resolve().parent.parent / "web"
router = APIRouter(tags=["operations"])


@router.get("/healthz", response_model=None)
async def healthz() -> Response:
    """The process answers. Says nothing of the engine: that is /readyz."""
    return FastJSON({"status": "alive"})


@router.get("/readyz", response_model=None, responses={503: PROBLEMS[503]})
async def readyz(deps: Deps) -> Response:
    """The engine is up, the office-holder is loaded and probed, the ledger answers."""
    deps.readiness.require()
    await deps.engine.check_health()
    await on_thread(deps.ledger.office)
    return FastJSON({"status": "ready", "office": deps.office.holder})


@router.get("/metrics", response_model=None)
async def metrics(deps: Deps) -> Response:
    """Prometheus' text format."""
    body = await on_thread(_scrape, deps)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


def _scrape(deps: ServeDeps) -> bytes:
    stats = deps.ledger.outbox_stats()
    deps.metrics.outbox_pending.set(stats.pending)
    deps.metrics.outbox_unconfirmed.set(stats.unconfirmed)
    deps.metrics.outbox_age.set(stats.oldest_pending_age_s)
    deps.metrics.outbox_parked.set(stats.parked)
    return generate_latest(deps.metrics.registry)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The chat page."""
    return _page("index.html")


@router.get("/loop", include_in_schema=False)
async def loop() -> Response:
    """The Loop page."""
    return _page("loop.html")


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    """The pages' icon."""
    return FileResponse(WEB / "favicon.svg", media_type="image/svg+xml")


def _page(name: str) -> Response:
    return FileResponse(WEB / name, media_type="text/html", headers={"Cache-Control": "no-cache"})
