"""One broker of each kind for the whole run."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Iterator

import pytest

from tests.feedback.brokers import KAFKA_ENV, ApacheKafka, Broker, Embedded, FakeApart, FakeBroker, kafka_script

NO_KAFKA = f"Apache Kafka isn't here: set {KAFKA_ENV} to the start script of one"
EMBEDDED = pytest.param("embedded", marks=pytest.mark.slow)
APACHE = pytest.param("apache", marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[Embedded]:
    broker = Embedded()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def apache_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    script = kafka_script()
    if script is None:
        pytest.skip(NO_KAFKA)  # the suite has run against the embedded broker
    broker = ApacheKafka(script, tmp_path_factory.mktemp("kafka"))
    yield broker
    broker.stop()


@pytest.fixture
def fake_broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def apart_broker() -> Iterator[FakeApart]:
    broker = FakeApart()
    yield broker
    broker.stop()


@pytest.fixture(params=["fake", "apart", EMBEDDED, APACHE])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker; the fake, and the fake asked through a process of its own."""
    return request.getfixturevalue(f"{request.param}_broker")


@pytest.fixture(params=[EMBEDDED, APACHE])
def real_broker(request: pytest.FixtureRequest) -> Embedded | ApacheKafka:
    """Each broker that is a process."""
    return request.getfixturevalue(f"{request.param}_broker")


@pytest.fixture
def unique() -> str:
    """A name for topics and groups that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def _client_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """kafka-python 3.0.12 drops sockets of failed connection attempts unclosed: let that surface here and nowhere else.

    Only tests that talk to a real broker may; `pytest_collection_modifyitems` lets their ResourceWarning pass.
    """
    yield
    if request.node.get_closest_marker("slow"):
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/feedback/" in item.nodeid and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    without_kafka = [report for report in skipped if NO_KAFKA in str(report.longrepr)]
    if without_kafka:
        terminalreporter.section("Apache Kafka")
        terminalreporter.line(f"{len(without_kafka)} tests did NOT run. {NO_KAFKA}")
