"""Whose requests are answered: those that name this serving, not a stranger's name that leads here.

A web page can point a name of its own at 127.0.0.1 after it was loaded (DNS rebinding). To the browser our answers are
then the page's own: it may read them, and ask anything. What gives it away is the Host header, which holds its name.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.types import Scope

from serve.config import ServeConfig

_ANY = "*"
_LONGEST = 300
"""Bytes of a Host header: a name has 253 at most."""


class TrustedHosts:
    """What `serve.trusted_hosts` and the address bound to allow (adr/0099)."""

    def __init__(self, config: ServeConfig) -> None:
        self._any = _ANY in config.trusted_hosts or not (config.trusted_hosts or is_loopback(config.host))
        self._names = frozenset(name.lower() for name in ("localhost", config.host, *config.trusted_hosts))
        self._known = lru_cache(maxsize=256)(self._is_known)

    def trust(self, scope: Scope) -> bool:
        """Whether a request is for this serving. One without a Host header is: no browser sends that."""
        if self._any:
            return True
        return all(len(told) <= _LONGEST and self._known(told) for name, told in scope["headers"] if name == b"host")

    def _is_known(self, told: bytes) -> bool:
        name = _without_port(told.decode("latin-1").strip().lower()).removesuffix(".")
        # An address needs nobody to resolve it: who names ours is here of their own accord.
        return name in self._names or name.endswith(".localhost") or _address(name) is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what is bound to this address."""
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return host.lower() == "localhost" if address is None else address.is_loopback


def _without_port(told: str) -> str:
    if told.startswith("["):
        return told[1:].partition("]")[0]
    return told.partition(":")[0]


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:  # a name
        return None
