"""Who somebody is, without knowing who: installation secrets and the keyed pseudonyms made with them."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

MINIMUM_SECRET_CHARACTERS = 16
PSEUDONYM_PATTERN = r"^v_[A-Za-z0-9_-]{1,64}$"
"""How a voter may be called who is to be forgotten: looser than what `pseudonym` makes."""


class SecretError(ValueError):
    """A secret can't be used; the message names the file or variable and the fix."""


def load_or_make_secret(path: Path, env: str) -> str:
    """The secret of environment variable `env`, else that of the file, which is made (mode 0600) when missing.

    Two processes that start together agree: the file is written whole under a passing name and linked into place,
    and whoever comes second reads what the first has linked.

    Raises:
        SecretError: the variable or the file holds fewer than 16 characters, or the file can't be read or made.
    """
    given = os.environ.get(env)
    if given is not None:
        return _checked(given.strip(), f"environment variable {env}")
    try:
        if not path.exists():
            _make(path)
        return _checked(path.read_text(encoding="utf-8").strip(), str(path))
    except OSError as error:
        raise SecretError(f"secret {path}: {error.strerror or error}; make the folder writable or set {env}") from error


def pseudonym(secret: str, token: str) -> str:
    """The stable name of whoever holds `token`: HMAC-SHA256 under the installation's secret, `v_` and 24 hex digits."""
    keyed = _keyed(secret).copy()
    keyed.update(token.encode())
    return f"v_{keyed.hexdigest()[:24]}"


@lru_cache(maxsize=4)
def _keyed(secret: str) -> hmac.HMAC:
    """The HMAC before any token, to be copied. `hmac.digest` lets go of the interpreter's lock each time, and serving's
    event loop then has to wait for it."""
    return hmac.new(secret.encode(), digestmod="sha256")


def _checked(secret: str, source: str) -> str:
    if len(secret) < MINIMUM_SECRET_CHARACTERS:
        raise SecretError(f"{source}: a secret needs at least {MINIMUM_SECRET_CHARACTERS} characters")
    return secret


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(passing)
    finally:
        passing.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # a key that a power cut takes back would make strangers of all voters
    finally:
        os.close(folder)
