"""Whatever the OpenAPI document allows, and much that it doesn't, never ends in a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import create_app
from serve.config import ServeConfig
from tests.fakes.engine import FakeEngine
from tests.serve.conftest import TOKEN, ready_deps

CHECKS = [not_a_server_error, content_type_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    paths = DataPaths(tmp_path_factory.mktemp("data"))
    paths.create()
    ledger = Ledger.open(paths.ledger_url)
    engine = FakeEngine(words=2)
    engine._dead = None
    deps = ready_deps(engine, ledger, paths, ServeConfig(max_max_tokens=64, trusted_hosts=("testserver",)))
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(deps))
    ledger.close()


def operation(api: Any, label: str) -> Any:
    """The operation of this method and path."""
    method, path = label.split()
    return api[path][method]


REFUSING = (
    "POST /v1/chat/completions",
    "POST /v1/pairs",
    "POST /v1/votes",
    "POST /v1/turns",
    "POST /v1/thumbs",
    "POST /v1/releases/{name}/promote",
    "POST /v1/releases/{name}/reject",
    "POST /v1/releases/rollback",
    "POST /v1/releases/pause",
    "POST /v1/releases/resume",
    "POST /v1/voters/forget",
    "POST /v1/rollouts",
    "PUT /v1/rollout-adapters/{name}",
    "DELETE /v1/rollout-adapters/{name}",
)
ANSWERING = (
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/releases",
    "GET /v1/releases/history",
    "GET /v1/lineage/{id}",
    "GET /v1/reviews",
    "POST /v1/reviews",
    "GET /v1/leaderboard",
    "GET /v1/loop",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
)
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, VALID) for label in REFUSING + ANSWERING] + [(label, INVALID) for label in REFUSING],
)
def test_no_request_ends_in_a_server_error(api: Any, label: str, mode: schemathesis.GenerationMode) -> None:
    chosen = operation(api, label)

    @given(case=chosen.as_strategy(generation_mode=mode))
    @settings(
        max_examples=20 if "{" in label or label in REFUSING else 2,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Any) -> None:
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        case.validate_response(response, checks=CHECKS)

    holds()


def test_every_route_of_the_document_is_among_them(api: Any) -> None:
    routes = {f"{method.upper()} {path}" for path, item in api.raw_schema["paths"].items() for method in item}
    assert routes == set(REFUSING) | set(ANSWERING)
