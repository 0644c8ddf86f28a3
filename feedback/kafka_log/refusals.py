"""What stands between us and a broker that is there: in words that name the setting."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from kafka import errors as kafka_errors

from feedback.config import KafkaSecurity
from feedback.kafka_log.network import NoHandshake
from feedback.kafka_security import SASL_PASSWORD, SECTION

_EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 10, 62, 64
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")


def explained(error: BaseException, security: KafkaSecurity) -> str | None:
    """What an error of TLS or login means, and what to do; None where it is none of these."""
    for each in _causes(error):
        told = _of_login(each, security) or _of_tls(each, security)
        if told is not None:
            return told
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it wraps: as its cause, or, as the client does, as its argument."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        wrapped = next((part for part in seen.args if isinstance(part, BaseException)), None)
        seen = wrapped or seen.__cause__


def _of_login(error: BaseException, security: KafkaSecurity) -> str | None:
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return (
            f"the broker refuses the login of {security.sasl_username} by {security.sasl_mechanism}; "
            f"mend {SECTION}.sasl_username, or the password ({SASL_PASSWORD} or sasl_password_file)"
        )
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return f"the broker doesn't take {security.sasl_mechanism}; set {SECTION}.sasl_mechanism to one that it has"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return f"this port wants no login; set {SECTION}.protocol to {'SSL' if security.tls else 'PLAINTEXT'}"
    return None


def _of_tls(error: BaseException, security: KafkaSecurity) -> str | None:
    if isinstance(error, ssl.SSLError):
        return _of_openssl(error, security)
    if isinstance(error, kafka_errors.InvalidReceiveError) and not security.tls:
        return (
            f"what this port answers is none of Kafka's in the clear; if it speaks TLS, set {SECTION}.protocol to that"
        )
    if isinstance(error, NoHandshake):
        return (
            "this port leaves the TLS handshake unanswered; if that isn't for a broker too busy, set "
            f"{SECTION}.protocol ({security.protocol}) to what it speaks"
        )
    return None


def _of_openssl(error: ssl.SSLError, security: KafkaSecurity) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error)
    reason = getattr(error, "reason", None) or ""
    if reason in _NO_TLS:
        return _other_protocol(security)
    if "ALERT" in reason:
        ours = "the certificate of ours" if security.ssl_certfile else "us without a certificate"
        return f"the broker refuses {ours}; give one that it trusts in {SECTION}.ssl_certfile and ssl_keyfile"
    return f"no TLS can be agreed on with the broker ({reason or error}); mend {SECTION}"


def _of_certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return (
            f"the broker's certificate is for another name ({error.verify_message}); name the broker in "
            "feedback.kafka, and it itself in its advertised.listeners, as its certificate does"
        )
    if error.verify_code == _EXPIRED:
        return "the broker's certificate has expired; renew it"
    return (
        f"the broker's certificate is signed by nobody whom we trust ({error.verify_message}); "
        f"give its authority's certificate in {SECTION}.ssl_cafile"
    )


def _other_protocol(security: KafkaSecurity) -> str:
    return f"this port doesn't speak TLS; set {SECTION}.protocol ({security.protocol}) to what it speaks"
