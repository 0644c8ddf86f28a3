"""Which Kafka a command reaches, and how: settings, variables, a running `up`, the doctor."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import doctor, presence
from deploy.beside import RESOLVED
from deploy.config import ENVIRONMENT, HustingsConfig, load, to_toml
from deploy.errors import ConfigError
from deploy.kafka import require_kafka, require_usable, with_kafka
from deploy.launch import specs
from deploy.up import _write_privately
from feedback.broker import EmbeddedBroker
from feedback.kafka_security import SASL_PASSWORD

LOGIN = {
    "HUSTINGS_KAFKA": "kafka-1:9093",
    "HUSTINGS_KAFKA_PROTOCOL": "SASL_SSL",
    "HUSTINGS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "HUSTINGS_KAFKA_SASL_USERNAME": "hustings",
}

WITHOUT_ADDRESS = {name: value for name, value in LOGIN.items() if name != "HUSTINGS_KAFKA"}


@pytest.fixture(autouse=True)
def _nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SASL_PASSWORD, raising=False)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_every_key_of_the_way_to_kafka_has_a_variable(tmp_path: Path) -> None:
    section = "feedback.kafka_security."
    found = {key.removeprefix(section): name for name, key in ENVIRONMENT.items() if key.startswith(section)}
    assert found == {key: f"HUSTINGS_KAFKA_{key.upper()}" for key in type(load().feedback.kafka_security).model_fields}
    told = LOGIN | {"HUSTINGS_KAFKA_SSL_CHECK_HOSTNAME": "false", "HUSTINGS_KAFKA_SSL_CAFILE": "ca.pem"}
    security = load(environment=told).feedback.kafka_security
    assert security.ssl_check_hostname is False
    assert security.ssl_cafile == tmp_path / "ca.pem", "processes in other folders read it too"


def test_what_does_not_go_together_is_one_line_that_names_the_fix() -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides=["feedback.kafka_security.sasl_username=ann"], environment={})
    assert str(caught.value) == (
        "configuration feedback.kafka_security (from --set): sasl_username says nothing without a login; "
        "set protocol to SASL_SSL"
    )
    password = "feedback.kafka_security.sasl_password"
    with pytest.raises(ConfigError, match=rf"did you mean {password}_file\?") as caught:
        load(overrides=[f"{password}=hunter2"], environment={})
    assert "hunter2" not in str(caught.value)


def test_passwords_are_in_no_configuration_and_reach_the_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (LOGIN | {SASL_PASSWORD: "hunter2-of-the-test"}).items():
        monkeypatch.setenv(name, value)
    wanted = load()
    text = to_toml(wanted, explain=True)
    assert "hunter2" not in text
    file = tmp_path / "resolved.toml"
    _write_privately(file, text)
    for child in specs(wanted, file, broker_port=None, say=print, coloured=False):
        environment = {**os.environ, **child.environment}
        assert load(file, environment=environment) == wanted
        assert environment[SASL_PASSWORD] == "hunter2-of-the-test"
        assert "hunter2" not in " ".join(child.command)


@pytest.fixture
def config(tmp_path: Path) -> HustingsConfig:
    return load(direct={"data_dir": tmp_path / "data"})


@pytest.fixture
def running(config: HustingsConfig) -> Iterator[HustingsConfig]:
    """An `up` on the same folder that was told of a Kafka with a login."""
    with presence.hold(config.paths):
        told = load(environment=LOGIN)
        _write_privately(config.paths.run / RESOLVED, to_toml(told))
        presence.write(config.paths, presence.Presence(os.getpid(), "", str(told.feedback.kafka), {}))
        yield told


def test_beside_an_up_its_kafka_is_reached_as_it_does(config: HustingsConfig, running: HustingsConfig) -> None:
    """`up --set feedback.kafka_security...` tells only its own processes."""
    found = with_kafka(config).feedback
    assert (found.kafka, found.kafka_security) == (running.feedback.kafka, running.feedback.kafka_security)
    own = load(direct={"data_dir": config.data_dir, "feedback.kafka": "mine:9092"})
    assert with_kafka(own) == own


def test_topics_that_are_made_beside_an_up_are_as_it_makes_them(config: HustingsConfig) -> None:
    """A replay of a lost topic made it with this command's own partitions and copies."""
    with presence.hold(config.paths):
        told = load(overrides=["feedback.kafka=k:9092", "feedback.partitions=6", "feedback.replication=2"])
        _write_privately(config.paths.run / RESOLVED, to_toml(told))
        presence.write(config.paths, presence.Presence(os.getpid(), "", "k:9092", {}))
        found = with_kafka(config).feedback
    assert (found.kafka, found.partitions, found.replication) == ("k:9092", 6, 2)


def test_the_embedded_broker_of_an_up_is_reached_in_the_clear(config: HustingsConfig) -> None:
    with presence.hold(config.paths):
        _write_privately(config.paths.run / RESOLVED, to_toml(load(environment={"HUSTINGS_KAFKA": "127.0.0.1:4444"})))
        presence.write(config.paths, presence.Presence(os.getpid(), "", "127.0.0.1:4444", {}))
        mine = load(direct={"data_dir": config.data_dir}, environment=WITHOUT_ADDRESS)
        assert mine.feedback.kafka_security.login
        assert with_kafka(mine).feedback.kafka_security.protocol == "PLAINTEXT"


def test_no_kafka_at_all_says_what_to_do(config: HustingsConfig) -> None:
    with pytest.raises(ConfigError, match="give --kafka HOST:PORT"):
        require_kafka(with_kafka(config))
    assert require_kafka(load(environment=LOGIN)) == "kafka-1:9093"


def test_up_starts_nothing_where_kafka_cannot_be_reached_as_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=rf"SASL_SSL wants a password; give it in {SASL_PASSWORD}"):
        require_usable(load(environment=LOGIN))
    monkeypatch.setenv(SASL_PASSWORD, "secret")
    require_usable(load(environment=LOGIN))
    require_usable(load(environment={}))
    with pytest.raises(ConfigError, match="the embedded broker knows neither TLS nor logins; name yours with --kafka"):
        require_usable(load(environment=WITHOUT_ADDRESS))


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the client's, see tests/feedback/conftest.py
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_the_doctor_asks_as_clients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.kafka_log.client.CONNECT_TIMEOUT_MS", 1_000)
    broker = EmbeddedBroker()
    address = broker.start()
    try:
        told = list(doctor.check_kafka(load(environment={"HUSTINGS_KAFKA": address})))
        assert [(one.verdict, one.text) for one in told] == [
            ("ok", f"{address} accepts connections"),
            ("ok", "answers its clients (PLAINTEXT)"),
        ]
        secure = {"HUSTINGS_KAFKA": address, "HUSTINGS_KAFKA_PROTOCOL": "SSL"}
        unchecked = secure | {"HUSTINGS_KAFKA_SSL_CHECK_HOSTNAME": "false"}
        note, open_, refused = doctor.check_kafka(load(environment=unchecked))
        assert (note.verdict, open_.verdict, refused.verdict) == ("note", "ok", "not ok")
        assert "ssl_check_hostname is false" in note.text
        assert "this port leaves the TLS handshake unanswered" in refused.text
        assert "set feedback.kafka_security.protocol (SSL) to what it speaks" in refused.remedy
    finally:
        broker.stop()


def test_a_broker_at_an_ipv6_address_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    list(doctor.check_kafka(load(environment={"HUSTINGS_KAFKA": "[::1]:9092,kafka:9092"})))
    assert asked == [("::1", 9092), ("kafka", 9092)]
