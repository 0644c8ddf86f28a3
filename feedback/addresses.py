"""Addresses as they may be shown: to a terminal, in a log, in an error."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands where a password is not shown; SQLAlchemy's own word for it."""

_IN_AUTHORITY = re.compile(r"(?<=[^/]//)(?P<user>[^/?#:@]*):(?P<password>.*)@", re.DOTALL)
"""To the last `@`: in an address that was not escaped, the password may hold any sign."""
_IN_QUERY = re.compile(r"(?P<name>[?&](?:ssl)?password=)[^&]*", re.IGNORECASE)
"""libpq takes its passwords as parameters too."""


def without_password(url: str) -> str:
    """The URL, well formed or not, with `***` for each password."""
    return _IN_QUERY.sub(rf"\g<name>{HIDDEN}", _IN_AUTHORITY.sub(rf"\g<user>:{HIDDEN}@", url))


def is_hidden(url: str) -> bool:
    """Whether it is what `without_password` made of an address that has one."""
    return f":{HIDDEN}@" in url or f"password={HIDDEN}" in url
