"""TLS and login: which settings go together, what the client is given, and that no password is shown."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    RequestTimedOutError,
    SaslAuthenticationFailedError,
)
from pydantic import ValidationError

from feedback.config import FeedbackConfig, KafkaSecurity
from feedback.event_log import EventLogError, EventLogUnavailable
from feedback.kafka_log import KafkaApart, KafkaEventLog
from feedback.kafka_log.network import NoHandshake, Reasons, _Plain, _Tls
from feedback.kafka_security import KEY_PASSWORD as KEY_VARIABLE
from feedback.kafka_security import SASL_PASSWORD, Hidden, SecurityUnusable, options, worries
from tests.feedback.certificates import KEY_PASSWORD, Papers, papers

LOGIN: dict[str, Any] = {"protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "ann"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(autouse=True)
def _no_passwords_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SASL_PASSWORD, raising=False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_without_settings_the_client_is_told_nothing() -> None:
    assert options(KafkaSecurity()) == {}
    assert FeedbackConfig().kafka_security == KafkaSecurity()


def test_tls_with_a_certificate_of_ours(files: Papers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_PASSWORD)
    security = KafkaSecurity(
        protocol="SSL", ssl_cafile=files.ca, ssl_certfile=files.client, ssl_keyfile=files.client_key
    )
    assert options(security) == {
        "security_protocol": "SSL",
        "ssl_check_hostname": True,
        "ssl_cafile": str(files.ca),
        "ssl_certfile": str(files.client),
        "ssl_keyfile": str(files.client_key),
        "ssl_password": KEY_PASSWORD,
    }


def test_tls_by_the_systems_authorities_never_asks_a_terminal_for_a_password() -> None:
    assert options(KafkaSecurity(protocol="SSL")) == {
        "security_protocol": "SSL",
        "ssl_check_hostname": True,
        "ssl_password": "",
    }


@pytest.mark.parametrize(
    ("mechanism", "user", "sent"),
    [
        ("PLAIN", "a,b=c", "a,b=c"),
        ("SCRAM-SHA-512", "a,b=c", "a=2Cb=3Dc"),
        ("SCRAM-SHA-256", "a=2Cb", "a=3D2Cb"),
    ],
)
def test_a_login(mechanism: Any, user: str, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5802 escapes two characters in names; the client sends them as they are given."""
    monkeypatch.setenv(SASL_PASSWORD, "pass,word=")
    security = KafkaSecurity(protocol="SASL_PLAINTEXT", sasl_mechanism=mechanism, sasl_username=user)
    assert options(security) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": sent,
        "sasl_plain_password": "pass,word=",
    }


def test_a_password_comes_from_the_variable_else_from_the_file_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("first pass \n", encoding="utf-8")
    security = KafkaSecurity(**LOGIN, sasl_password_file=file)
    assert options(security)["sasl_plain_password"] == "first pass "
    file.write_text("sécond\r\n", encoding="utf-8")
    assert options(security)["sasl_plain_password"] == "sécond"
    monkeypatch.setenv(SASL_PASSWORD, "third")
    assert options(security)["sasl_plain_password"] == "third"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sasl_username": "ann"}, "sasl_username says nothing without a login; set protocol to SASL_SSL"),
        ({"protocol": "SSL", "sasl_mechanism": "PLAIN"}, "sasl_mechanism says nothing without a login"),
        ({"sasl_password_file": "x"}, "sasl_password_file says nothing without a login"),
        ({"ssl_cafile": "ca.pem"}, "ssl_cafile says nothing without TLS; set protocol to SSL or SASL_SSL"),
        (LOGIN | {"protocol": "SASL_PLAINTEXT", "ssl_cafile": "ca.pem"}, "ssl_cafile says nothing without TLS"),
        ({"protocol": "SASL_SSL", "sasl_username": "ann"}, "SASL_SSL needs sasl_mechanism: PLAIN, SCRAM-SHA-256 or"),
        ({"protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "SASL_SSL needs sasl_username"),
        ({"protocol": "SSL", "ssl_keyfile": "k"}, "ssl_keyfile says nothing without ssl_certfile"),
        ({"protocol": "SSL", "ssl_key_password_file": "k"}, "ssl_key_password_file says nothing without ssl_certfile"),
        ({"protocol": "TLS"}, "'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
        (LOGIN | {"sasl_mechanism": "OAUTHBEARER"}, "'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'"),
        (LOGIN | {"sasl_username": ""}, "at least 1 character"),
        (LOGIN | {"sasl_password": "hunter2"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        KafkaSecurity(**given)
    assert told in str(caught.value)


def tls(files: Papers, **other: Any) -> KafkaSecurity:
    return KafkaSecurity(protocol="SSL", **{"ssl_certfile": files.client, **other})


def test_files_that_cannot_be_used_are_named_with_the_fix(files: Papers, tmp_path: Path) -> None:
    empty, password = tmp_path / "empty", tmp_path / "password"
    empty.write_bytes(b"\n")
    password.write_text("another", encoding="utf-8")
    encrypted = files.client_key
    faults = {
        r"ssl_cafile: .*gone.*No such file.*name a file that this": tls(files, ssl_cafile=tmp_path / "gone"),
        r"ssl_cafile: .*holds no certificates in PEM form": tls(files, ssl_cafile=encrypted),
        r"ssl_keyfile: .*client\.pem holds no private key": tls(files),
        r"ssl_keyfile: .*Is a directory": tls(files, ssl_keyfile=tmp_path),
        rf"ssl_keyfile: .*has a password; give it in {KEY_VARIABLE} or ssl_key": tls(files, ssl_keyfile=encrypted),
        r"ssl_keyfile: the password given for .* doesn't open it": tls(
            files, ssl_keyfile=encrypted, ssl_key_password_file=password
        ),
        r"ssl_keyfile: .*is not the key of the certificate in": tls(files, ssl_keyfile=files.broker),
        r"ssl_certfile: .*hold no certificate and key": tls(files, ssl_certfile=empty, ssl_keyfile=files.bare_key),
        r"ssl_key_password_file: .*is empty; write": tls(files, ssl_key_password_file=empty, ssl_keyfile=encrypted),
        rf"protocol: SASL_SSL wants a password; give it in {SASL_PASSWORD} or sasl": KafkaSecurity(**LOGIN),
        r"sasl_password_file: .*gone: No such file": KafkaSecurity(**LOGIN, sasl_password_file=tmp_path / "gone"),
    }
    for told, security in faults.items():
        with pytest.raises(SecurityUnusable, match=rf"^feedback\.kafka_security\.{told}") as caught:
            options(security)
        assert "\n" not in str(caught.value)
        assert "another" not in str(caught.value)
    for key in (files.bare_key, None):
        options(tls(files, ssl_certfile=files.client if key else files.broker, ssl_keyfile=key))


def test_a_password_that_is_no_text_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"hunter2\xff")
    with pytest.raises(SecurityUnusable, match="no text in UTF-8") as caught:
        options(KafkaSecurity(**LOGIN, sasl_password_file=file))
    assert caught.value.__cause__ is None  # its message has the bytes


@pytest.mark.slow  # lets the client's unclosed sockets pass, see conftest.py
def test_nothing_shows_a_password(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The client's debug log tells of everything that it was given."""
    monkeypatch.setenv(SASL_PASSWORD, "hunter2-of-the-test")
    given = options(KafkaSecurity(**LOGIN))
    password = given["sasl_plain_password"]
    assert isinstance(password, Hidden)
    assert "hunter2" not in f"{given} {password} {password!r} {password!s} {password:>40}" + "%s" % password  # noqa: UP031
    assert "\0".join(["u", password]).encode() == b"u\0hunter2-of-the-test"
    monkeypatch.setattr("feedback.kafka_log.client.CONNECT_TIMEOUT_MS", 1)
    log = KafkaEventLog("127.0.0.1:1", security=KafkaSecurity(**LOGIN))
    caplog.set_level(logging.DEBUG, logger="kafka")
    with pytest.raises(EventLogUnavailable) as caught:
        log.check()
    assert "hunter2" not in str(caught.value)
    assert "sasl_plain_password" in caplog.text
    assert "hunter2" not in caplog.text


def test_the_child_is_told_where_passwords_lie_and_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SASL_PASSWORD, "hunter2-of-the-test")
    security = KafkaSecurity(**LOGIN, sasl_password_file=tmp_path / "password")
    apart = KafkaApart("127.0.0.1:9", security=security)
    assert KafkaSecurity.model_validate(apart._settings["security"]) == security
    assert "hunter2" not in str(apart._settings)


def test_what_cannot_be_used_is_said_when_a_process_starts_and_by_each_call_after(tmp_path: Path) -> None:
    """A file may vanish later: the relay's process then says so, and goes on when it is back."""
    file = tmp_path / "password"
    security = KafkaSecurity(**LOGIN, sasl_password_file=file)
    config = FeedbackConfig(kafka_security=security)
    gone = rf"sasl_password_file: {file}: No such file"
    with pytest.raises(SecurityUnusable, match=gone):
        KafkaEventLog.configured("127.0.0.1:9", config)
    with pytest.raises(SecurityUnusable, match=gone):
        KafkaApart.configured("127.0.0.1:9", config, process="serve")
    apart = KafkaApart("127.0.0.1:9", security=security)
    try:
        for _ in range(2):
            with pytest.raises(EventLogError, match=gone):
                apart.check()
    finally:
        apart.close()


def test_what_is_less_safe_than_it_looks_is_said() -> None:
    in_the_clear = LOGIN | {"protocol": "SASL_PLAINTEXT"}
    assert list(worries(KafkaSecurity(**LOGIN))) == []
    assert list(worries(KafkaSecurity())) == []
    (plain,) = worries(KafkaSecurity(**in_the_clear))
    assert "the password and all chats go over the network in the clear; use SASL_SSL" in plain
    (scram,) = worries(KafkaSecurity(**in_the_clear | {"sasl_mechanism": "SCRAM-SHA-512"}))
    assert "what a password can be guessed from" in scram
    (unchecked,) = worries(KafkaSecurity(protocol="SSL", ssl_check_hostname=False))
    assert "ssl_check_hostname is false" in unchecked


@pytest.mark.parametrize("transport", [_Plain, _Tls])
def test_what_a_broker_says_as_it_hangs_up_is_read(transport: Any) -> None:
    """kafka-python 3.0.12 drops it: of two refused logins one was told as a connection that broke."""
    ours, its = socket.socketpair()
    with ours:
        its.sendall(b"wrong password")
        its.close()
        ours.setblocking(False)
        reader = transport.__new__(transport)
        reader._sock, reader._closed = ours, False
        assert reader._sock_recv() == (b"wrong password", None)
        received, end = reader._sock_recv()
    assert received == b""
    assert isinstance(end, KafkaConnectionError)


def test_why_there_is_no_connection_is_the_last_thing_that_tells_something() -> None:
    reasons = Reasons()
    reasons.failed(KafkaTimeoutError("late"))
    assert reasons.last == KafkaTimeoutError("late")
    late = (KafkaTimeoutError("late"), RequestTimedOutError("late"), NoHandshake("late"))
    for each in (SaslAuthenticationFailedError("no"), *late):
        reasons.failed(each)
    assert reasons.last == SaslAuthenticationFailedError("no")
    reasons.failed(KafkaConnectionError("111 ECONNREFUSED"))
    assert reasons.last == KafkaConnectionError("111 ECONNREFUSED")
    reasons.connected(None)
    assert reasons.last is None


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that accepts and says nothing, as one for another protocol may."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow  # as above
def test_a_port_that_never_answers_a_handshake_is_no_hang(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.kafka_log.client.CONNECT_TIMEOUT_MS", 500)
    log = KafkaEventLog(silent, security=KafkaSecurity(protocol="SSL"))
    errors: list[EventLogUnavailable] = []

    def ask() -> None:
        try:
            log.check()
        except EventLogUnavailable as error:
            errors.append(error)

    asked = threading.Thread(target=ask, daemon=True)
    began = time.monotonic()
    asked.start()
    asked.join(20)
    assert time.monotonic() - began < 10
    assert "this port leaves the TLS handshake unanswered; if that isn't for" in str(errors[0])
    assert "set feedback.kafka_security.protocol (SSL) to what it speaks" in str(errors[0])


@pytest.mark.slow  # as above
def test_clients_that_find_no_broker_leave_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python 3.0.12 leaves one for each: a broker that is away for a night had serving keep thousands."""
    monkeypatch.setattr("feedback.kafka_log.client.CONNECT_TIMEOUT_MS", 50)
    log = KafkaEventLog("127.0.0.1:1")
    before = set(threading.enumerate())
    for ask in (log.check, lambda: log.consumer(["t"], None).poll(0.1), lambda: log.ensure_topics(["t"])):
        with pytest.raises(EventLogUnavailable, match="does not answer; is the broker running"):
            ask()
    assert set(threading.enumerate()) <= before
