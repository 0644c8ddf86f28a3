"""Over TLS and with a login as in the clear; and what a wrong password, certificate, name or port ends in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feedback.broker import free_port
from feedback.config import FeedbackConfig, KafkaSecurity
from feedback.contracts import TOPICS, VOTE_TOPIC
from feedback.curator import GROUP
from feedback.event_log import EventLogError, EventLogUnavailable, OutgoingRecord
from feedback.kafka_log import KafkaApart, KafkaEventLog
from feedback.kafka_log.network import _Manager
from feedback.kafka_security import KEY_PASSWORD as KEY_VARIABLE
from feedback.kafka_security import SASL_PASSWORD
from feedback.ledger import Ledger
from feedback.relay import Relay
from tests.feedback.brokers import kafka_script
from tests.feedback.certificates import KEY_PASSWORD, Papers, papers
from tests.feedback.conftest import NO_KAFKA
from tests.feedback.secure_brokers import LIMITED, PASSWORD, USER, SecureKafka, TlsFront, embedded_behind_tls
from tests.feedback.test_event_log_contract import outgoing, read
from tests.ledger.builders import shown

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Way:
    """An address, how it is reached, and the passwords for it."""

    address: str
    settings: dict[str, Any]
    passwords: dict[str, str]

    def security(self, **other: Any) -> KafkaSecurity:
        return KafkaSecurity(**self.settings | other)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def embedded(files: Papers) -> Iterator[tuple[str, str]]:
    with embedded_behind_tls(files.broker) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def kafka(files: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    script = kafka_script()
    if script is None:
        pytest.skip(NO_KAFKA)  # TLS has been tried on the embedded broker; nothing here but Kafka knows logins
    broker = SecureKafka(script, tmp_path_factory.mktemp("secure-kafka"), files)
    yield broker
    broker.stop()


@pytest.fixture
def over_tls(embedded: tuple[str, str], files: Papers) -> Way:
    return Way(embedded[0], {"protocol": "SSL", "ssl_cafile": files.ca}, {})


@pytest.fixture
def scram(kafka: SecureKafka, files: Papers) -> Way:
    login = {"protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER}
    return Way(kafka.login, login | {"ssl_cafile": files.ca}, {SASL_PASSWORD: PASSWORD})


@pytest.fixture
def plain(kafka: SecureKafka, files: Papers) -> Way:
    login = {"protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "ann"}
    return Way(kafka.login, login | {"ssl_cafile": files.ca}, {SASL_PASSWORD: PASSWORD})


@pytest.fixture
def in_the_clear(kafka: SecureKafka) -> Way:
    login = {"protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "ann"}
    return Way(kafka.open, login, {SASL_PASSWORD: PASSWORD})


@pytest.fixture
def mutual(kafka: SecureKafka, files: Papers) -> Way:
    ours = {"ssl_certfile": files.client, "ssl_keyfile": files.client_key}
    return Way(kafka.mutual, {"protocol": "SSL", "ssl_cafile": files.ca} | ours, {KEY_VARIABLE: KEY_PASSWORD})


@pytest.fixture(autouse=True)
def _passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (SASL_PASSWORD, KEY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(params=["over_tls", "scram", "plain", "in_the_clear", "mutual"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    found = request.getfixturevalue(request.param)
    for variable, password in found.passwords.items():
        monkeypatch.setenv(variable, password)
    assert isinstance(found, Way)
    return found


def test_everything_that_clients_do(way: Way, unique: str) -> None:
    log = KafkaEventLog(way.address, security=way.security())
    log.check()
    assert log.ensure_topics([unique]) == {unique}
    assert log.ensure_topics([unique]) == frozenset()
    with closing(log.producer()) as producer, closing(log.consumer([unique], unique)) as member:
        large = OutgoingRecord(unique, "k0", os.urandom(1_500_000))
        assert producer.send([*outgoing(unique, 3, 20), large]) == [None] * 61
        records = read(member, 61)
        member.commit()
        assert sum(member.lag().values()) == 0
    assert {record.value for record in records} == {one.value for one in outgoing(unique, 3, 20)} | {large.value}


def test_the_relays_process_finds_the_passwords_by_itself(way: Way, unique: str) -> None:
    apart = KafkaApart(way.address, security=way.security())
    try:
        assert apart.ensure_topics([unique]) == {unique}
        with closing(apart.producer()) as producer, closing(apart.consumer([unique], None)) as reader:
            assert producer.send(outgoing(unique, 1, 5)) == [None] * 5
            assert [record.value for record in read(reader, 5)] == [one.value for one in outgoing(unique, 1, 5)]
    finally:
        apart.close()


def refused(way: Way, monkeypatch: pytest.MonkeyPatch, *, address: str | None = None, **other: Any) -> str:
    """What a client says that is given something else, in one line and in bounded time; it leaves no thread."""
    for variable, password in way.passwords.items():
        monkeypatch.setenv(variable, os.environ.get(variable, password))
    monkeypatch.setattr("feedback.kafka_log.client.CONNECT_TIMEOUT_MS", 1_200)
    security = KafkaSecurity(**other) if "protocol" in other else way.security(**other)
    log = KafkaEventLog(address or way.address, security=security)
    before, began = set(threading.enumerate()), time.monotonic()
    with pytest.raises(EventLogUnavailable) as caught:
        log.check()
    assert time.monotonic() - began < 8
    assert set(threading.enumerate()) <= before
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    assert KEY_PASSWORD not in text
    return text


def test_certificates_that_are_not_as_they_should_be(
    over_tls: Way, files: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_address = over_tls.address.replace("localhost", "127.0.0.1")
    unknown = r"signed by nobody whom we trust .*give its authority's certificate in feedback\.kafka_security\.ssl_caf"
    assert_matches(refused(over_tls, monkeypatch, ssl_cafile=files.other_ca), unknown)
    other = r"for another name \(IP address mismatch.*advertised\.listeners"
    assert_matches(refused(over_tls, monkeypatch, address=by_address), other)
    KafkaEventLog(by_address, security=over_tls.security(ssl_check_hostname=False)).check()


def assert_matches(text: str, pattern: str) -> None:
    with pytest.raises(RuntimeError, match=pattern):
        raise RuntimeError(text)


def test_an_expired_certificate(embedded: tuple[str, str], files: Papers, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = int(embedded[1].rpartition(":")[2])
    port = free_port()
    front = TlsFront(port, behind, files.expired_broker)
    try:
        way = Way(f"localhost:{port}", {"protocol": "SSL", "ssl_cafile": files.ca}, {})
        assert "the broker's certificate has expired; renew it" in refused(way, monkeypatch)
    finally:
        front.close()


def test_in_the_clear_on_a_port_with_tls(over_tls: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refused(over_tls, monkeypatch, protocol="PLAINTEXT")
    assert "does its port speak PLAINTEXT (feedback.kafka_security.protocol)?" in text


def test_in_the_clear_on_kafkas_port_with_tls(scram: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so itself, as TLS does: what comes is no answer of Kafka's."""
    text = refused(scram, monkeypatch, protocol="PLAINTEXT")
    assert "if it speaks TLS, set feedback.kafka_security.protocol to that" in text


def test_tls_on_a_port_in_the_clear(over_tls: Way, embedded: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded broker takes the handshake for the head of a long request, and waits for the rest of it."""
    text = refused(over_tls, monkeypatch, address=embedded[1])
    assert (
        "this port leaves the TLS handshake unanswered; if that isn't for a broker too busy, set feedback.kaf" in text
    )


def test_ports_of_kafka_for_others(
    kafka: SecureKafka, scram: Way, mutual: Way, files: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = {"protocol": "SSL", "ssl_cafile": files.ca}
    assert "this port doesn't speak TLS" in refused(scram, monkeypatch, address=kafka.plain)
    assert "does its port speak SSL (feedback.kafka_security.protocol)?" in refused(scram, monkeypatch, **tls)
    assert "does its port speak PLAINTEXT (" in refused(scram, monkeypatch, address=kafka.open, protocol="PLAINTEXT")
    bare = {"ssl_certfile": None, "ssl_keyfile": None}
    wanted = "the broker refuses us without a certificate; give one that it trusts in feedback.kafka_security.ssl_cert"
    assert wanted in refused(mutual, monkeypatch, **bare)
    login = {"sasl_mechanism": "PLAIN", "sasl_username": "ann"}
    monkeypatch.setenv(SASL_PASSWORD, PASSWORD)
    assert "this port wants no login; set feedback.kafka_security.protocol to SSL" in refused(
        mutual, monkeypatch, **mutual.settings | login | {"protocol": "SASL_SSL"}
    )


def test_a_login_that_is_refused(scram: Way, plain: Way, in_the_clear: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SASL_PASSWORD, "wrong-password-of-the-test")
    logins: list[str] = []
    build = _Manager._build_transport

    async def counted(manager: Any, node: Any, **how: Any) -> Any:
        logins.append(node.host)
        return await build(manager, node, **how)

    monkeypatch.setattr(_Manager, "_build_transport", counted)
    for way in (scram, plain, in_the_clear):
        text = refused(way, monkeypatch)
        assert f"the broker refuses the login of {way.settings['sasl_username']} by" in text
        assert f"or the password ({SASL_PASSWORD} or sasl_password_file). Nothing is lost" in text
        assert "wrong-password" not in text
    assert len(logins) == 3, "no attempt after a refusal: brokers may lock out who fails often"
    monkeypatch.setenv(SASL_PASSWORD, PASSWORD)
    text = refused(in_the_clear, monkeypatch, sasl_mechanism="SCRAM-SHA-512")
    assert "the broker doesn't take SCRAM-SHA-512; set feedback.kafka_security.sasl_mechanism to one" in text


def test_the_rights_that_the_guide_lists_are_enough_and_others_are_denied(
    scram: Way, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SASL_PASSWORD, PASSWORD)
    log = KafkaEventLog(scram.address, security=scram.security(sasl_username=LIMITED))
    log.check()
    log.ensure_topics(TOPICS)
    with closing(log.producer()) as producer, closing(log.consumer([VOTE_TOPIC], GROUP)) as member:
        assert producer.send(outgoing(VOTE_TOPIC, 2, 5)) == [None] * 10
        read(member, 10)
        member.commit()
    with closing(log.consumer([VOTE_TOPIC], None)) as alone:
        assert len(read(alone, 10)) >= 10
    assert log.erase(log.ends([VOTE_TOPIC]), GROUP)
    with pytest.raises(EventLogError, match="denies access; check the broker's rights for this client"):
        log.ensure_topics([unique])


def eventually(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)  # the relay announces nothing; bounded by timeout_s


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as the relay's other tests
@pytest.mark.parametrize("apart", [False, True])
def test_the_outbox_keeps_its_rows_until_the_password_is_mended(
    apart: bool, scram: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart: the password's file is read anew with each attempt."""
    monkeypatch.setattr("feedback.kafka_log.client.CONNECT_TIMEOUT_MS", 600)  # not in a process of its own
    password = tmp_path / "password"
    password.write_text("wrong-password-of-the-test\n", encoding="utf-8")
    config = FeedbackConfig(kafka=scram.address, kafka_security=scram.security(sasl_password_file=password))
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    log: KafkaApart | KafkaEventLog = KafkaEventLog.configured(scram.address, config)
    if apart:
        log = KafkaApart.configured(scram.address, config, process="serve")
    relay = Relay(ledger, log, config)
    relay.start()
    try:
        ledger.record_pair(shown("pair_1", conversation_id="talk"))
        ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="a")
        eventually(lambda: relay.status().error is not None)
        status = relay.status()
        assert "the broker refuses the login of" in str(status.error)
        assert "wrong-password" not in str(status.error)
        assert (status.running, status.connected, ledger.outbox_stats().pending) == (True, False, 2)
        password.write_text(f"{PASSWORD}\n", encoding="utf-8")
        eventually(lambda: ledger.outbox_stats().pending == 0)
        eventually(lambda: relay.status().connected)
    finally:
        relay.stop()
        if isinstance(log, KafkaApart):
            log.close()
        ledger.close()
