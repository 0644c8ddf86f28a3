"""Certificates that live for a test."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Signed:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: str | None = None) -> bytes:
        hidden: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            hidden = serialization.BestAvailableEncryption(password.encode())
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def issue(name: str, by: Signed | None = None, *, hosts: tuple[str, ...] = (), ended: bool = False) -> Signed:
    """A certificate of `by`; of itself, as an authority, where nobody is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now - DAY if ended else now + DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
    return Signed(made.sign(by.key if by else key, hashes.SHA256()), key)


@dataclass(frozen=True)
class Papers:
    """Files of an authority, of another one that nobody trusts, of a broker named `localhost` and of a client."""

    ca: Path
    other_ca: Path
    broker: Path
    """Key and certificate in one."""
    expired_broker: Path
    client: Path
    client_key: Path
    """With the password `KEY_PASSWORD`."""
    bare_key: Path
    """The same without one."""


KEY_PASSWORD = "key-password-of-the-test"


def papers(folder: Path) -> Papers:
    authority, other = issue("authority"), issue("other")
    broker = issue("broker", authority, hosts=("localhost",))
    expired = issue("broker", authority, hosts=("localhost",), ended=True)
    client = issue("client", authority)
    contents = {
        "ca": authority.certificate_pem(),
        "other_ca": other.certificate_pem(),
        "broker": broker.key_pem() + broker.certificate_pem() + authority.certificate_pem(),
        "expired_broker": expired.key_pem() + expired.certificate_pem(),
        "client": client.certificate_pem(),
        "client_key": client.key_pem(KEY_PASSWORD),
        "bare_key": client.key_pem(),
    }
    for name, content in contents.items():
        (folder / f"{name}.pem").write_bytes(content)
    return Papers(**{name: folder / f"{name}.pem" for name in contents})
