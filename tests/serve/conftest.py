"""An app on the fake engine and a real ledger in a temporary folder."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import ServeDeps, create_app
from serve.config import ServeConfig
from serve.engines.base import Engine
from tests.fakes.engine import FakeEngine

SECRET = "the-secret-of-the-tests"
TOKEN = "the-operator-of-the-tests"


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    made = DataPaths(tmp_path / "data")
    made.create()
    return made


@pytest.fixture
def ledger(paths: DataPaths) -> Iterator[Ledger]:
    opened = Ledger.open(paths.ledger_url)
    yield opened
    opened.close()


@pytest.fixture
async def engine() -> FakeEngine:
    made = FakeEngine()
    await made.start()
    return made


def ready_deps(engine: Engine, ledger: Ledger, paths: DataPaths, config: ServeConfig, **others: Any) -> ServeDeps:
    """What an app needs to answer at once."""
    usual: dict[str, Any] = {"base_model": "fake", "base_fingerprint": lambda: "f" * 64, "rng": random.Random(7)}
    deps = ServeDeps(
        config=config,
        paths=paths,
        engine=engine,
        ledger=ledger,
        secret=SECRET,
        operator_token=TOKEN,
        **{**usual, **others},
    )
    deps.readiness.set_ready()
    return deps


MakeDeps = Callable[..., ServeDeps]


@pytest.fixture
def make_deps(engine: FakeEngine, ledger: Ledger, paths: DataPaths) -> MakeDeps:
    def make(**config: Any) -> ServeDeps:
        return ready_deps(engine, ledger, paths, ServeConfig(**config))

    return make


@pytest.fixture
def deps(make_deps: MakeDeps) -> ServeDeps:
    return make_deps()


@pytest.fixture
def app(deps: ServeDeps) -> FastAPI:
    return create_app(deps)


def client_of(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as made:
        yield made
