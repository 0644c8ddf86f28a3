"""The app: routes and middleware around the parts that `ServeDeps` holds."""

from __future__ import annotations

from fastapi import FastAPI

from feedback.manifests import Manifests
from serve import faults
from serve.deps import ServeDeps
from serve.direct import Direct
from serve.hosts import TrustedHosts
from serve.middleware import RequestContext
from serve.openai import chat, models
from serve.quick_route import QuickRoute
from serve.releases.manager import ReleaseManager
from serve.reviews import ReviewShelf
from serve.rollout_adapters import RolloutAdapters
from serve.routes import health, pages, pairs, people, releases, reviews, rollouts, turns, votes
from serve.routes.problems import Problem
from serve.shortcut import Shortcut

__all__ = ["ServeDeps", "create_app"]
ROUTERS = (
    chat.router,
    models.router,
    pairs.router,
    votes.router,
    reviews.router,
    turns.router,
    releases.router,
    people.router,
    rollouts.router,
    health.router,
    pages.router,
)

DIRECT = frozenset({"/v1/votes", "/v1/thumbs"})
"""Endpoints that are asked often and answer in one piece."""


def create_app(deps: ServeDeps) -> FastAPI:
    """Compose the app. It neither starts nor stops what it is given, nor `app.state.releases`: `serve.main` does."""
    app = FastAPI(
        title="Hustings",
        description="Chat, two answers side by side, votes, and the adapters that they elect.",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
    )
    app.state.deps = deps
    app.state.releases = ReleaseManager(deps)
    app.state.rollout_adapters = RolloutAdapters(deps)
    app.state.reviews = ReviewShelf(deps.paths.review_pool, deps.base_fingerprint, deps.rng)
    app.state.manifests = Manifests(deps.ledger, deps.paths.adapters, watch=deps.metrics.watch_manifests)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/web", pages.FILES, name="web")
    faults.install(app)
    app.add_middleware(Shortcut, routes=[route for route in app.routes if isinstance(route, QuickRoute)])
    hosts = TrustedHosts(deps.config)
    app.state.direct = Direct(app, DIRECT, deps.metrics, deps.config.max_body_bytes, hosts)
    app.add_middleware(
        RequestContext, config=deps.config, metrics=deps.metrics, operator_token=deps.operator_token, hosts=hosts
    )
    deps.metrics.watch_engine(deps.engine.load, deps.engine.adapters)
    _publish_problem_schema(app)
    return app


def _publish_problem_schema(app: FastAPI) -> None:
    """Problem details are answered by handlers, which the OpenAPI document doesn't know of by itself."""
    plain = app.openapi

    def openapi() -> dict[str, object]:
        document = plain()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas["Problem"] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
