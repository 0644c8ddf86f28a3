"""What a Kafka client is told of TLS and login, out of the settings, files and passwords; and what is wrong with them.

Files and passwords are read anew for every client, so that those which were renewed count without a restart.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feedback.config import KafkaSecurity
from feedback.event_log import EventLogError

SECTION = "feedback.kafka_security"
SASL_PASSWORD = "HUSTINGS_KAFKA_SASL_PASSWORD"  # noqa: S105 (a variable's name)
KEY_PASSWORD = "HUSTINGS_KAFKA_SSL_KEY_PASSWORD"  # noqa: S105 (a variable's name)


class SecurityUnusable(EventLogError):
    """TLS or login can't be used as set; the message names the key and the fix."""


class Hidden(str):
    """A password that the client can use, and that nothing shows: its debug log tells of all that it was given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return repr(self)


def options(security: KafkaSecurity) -> dict[str, Any]:
    """kafka-python's own options.

    Raises:
        SecurityUnusable: a file or password is missing, or can't be used.
    """
    given: dict[str, Any] = {}
    if security.protocol != "PLAINTEXT":
        given["security_protocol"] = security.protocol
    if security.tls:
        given |= _tls(security)
    if security.login:
        given |= _login(security)
    return given


def worries(security: KafkaSecurity) -> Iterator[str]:
    """What works and is less safe than it looks, each in one line that names the fix."""
    if security.login and not security.tls:
        sent = "the password" if security.sasl_mechanism == "PLAIN" else "what a password can be guessed from"
        yield (
            f"{SECTION}.protocol is SASL_PLAINTEXT: {sent} and all chats go over the network in the clear; "
            "use SASL_SSL where the brokers have it"
        )
    if security.tls and not security.ssl_check_hostname:
        yield (
            f"{SECTION}.ssl_check_hostname is false: whoever has any certificate of these authorities can pass for a "
            "broker; name the brokers in feedback.kafka as their certificates do"
        )


def _tls(security: KafkaSecurity) -> dict[str, Any]:
    key_password = _password("ssl_key_password_file", security.ssl_key_password_file, KEY_PASSWORD)
    given = {
        "ssl_check_hostname": security.ssl_check_hostname,
        "ssl_cafile": _text(security.ssl_cafile),
        "ssl_certfile": _text(security.ssl_certfile),
        "ssl_keyfile": _text(security.ssl_keyfile),
        # Never None: OpenSSL would ask at the terminal for the password of a key that has one.
        "ssl_password": Hidden(key_password or ""),
    }
    _try_out(security, key_password or "")
    return {name: value for name, value in given.items() if value is not None}


def _try_out(security: KafkaSecurity, key_password: str) -> None:
    """Read the files as the client will with each connection, which tells nobody what is wrong with them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        _readable(name, getattr(security, name))
    if security.ssl_cafile is not None:
        try:
            context.load_verify_locations(security.ssl_cafile)
        except ssl.SSLError as error:
            raise _unusable("ssl_cafile", f"{security.ssl_cafile} holds no certificates in PEM form") from error
    if security.ssl_certfile is not None:
        try:
            context.load_cert_chain(security.ssl_certfile, security.ssl_keyfile, lambda: key_password)
        except (ssl.SSLError, ValueError) as error:
            raise _key_trouble(security, error, bool(key_password)) from error


def _key_trouble(security: KafkaSecurity, error: Exception, given: bool) -> SecurityUnusable:
    key = security.ssl_keyfile or security.ssl_certfile
    assert key is not None
    text = key.read_text(encoding="utf-8", errors="replace")
    if "PRIVATE KEY-----" not in text:
        return _unusable("ssl_keyfile", f"{key} holds no private key in PEM form; name the file that does")
    if "ENCRYPTED" in text and not given:
        return _unusable("ssl_keyfile", f"{key} has a password; give it in {KEY_PASSWORD} or ssl_key_password_file")
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return _unusable("ssl_keyfile", f"{key} is not the key of the certificate in {security.ssl_certfile}")
    if "ENCRYPTED" in text:
        return _unusable("ssl_keyfile", f"the password given for {key} doesn't open it")
    return _unusable("ssl_certfile", f"{security.ssl_certfile} and {key} hold no certificate and key in PEM form")


def _login(security: KafkaSecurity) -> dict[str, Any]:
    password = _password("sasl_password_file", security.sasl_password_file, SASL_PASSWORD)
    if not password:
        raise _unusable(
            "protocol", f"{security.protocol} wants a password; give it in {SASL_PASSWORD} or sasl_password_file"
        )
    user = str(security.sasl_username)
    if "\0" in user + password:
        raise _unusable("sasl_username", "user and password can hold no NUL")
    if security.sasl_mechanism != "PLAIN":
        user = user.replace("=", "=3D").replace(",", "=2C")  # RFC 5802's names, which the client leaves to us
    return {
        "sasl_mechanism": security.sasl_mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": Hidden(password),
    }


def _password(name: str, file: Path | None, variable: str) -> str | None:
    """The variable's, else the file's; without the line's end that editors and `echo` leave."""
    given = os.environ.get(variable)
    if given:
        return given.rstrip("\r\n")
    if file is None:
        return None
    _readable(name, file)
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:  # its message would show a part of the password
        raise _unusable(name, f"{file} is no text in UTF-8") from None
    if not text:
        raise _unusable(name, f"{file} is empty; write the password into it, or give {variable}")
    return text


def _readable(name: str, file: Path | None) -> None:
    if file is None:
        return
    try:
        file.open("rb").close()
    except OSError as error:
        raise _unusable(name, f"{file}: {error.strerror or error}; name a file that this process can read") from error


def _unusable(name: str, text: str) -> SecurityUnusable:
    return SecurityUnusable(f"{SECTION}.{name}: {text}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
