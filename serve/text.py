"""Text from outside, checked once: what can't be stored or encoded is refused at the door."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s,;)\"']+")


def storable(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it holds NUL, which PostgreSQL can't store, or half a surrogate pair, which UTF-8 can't encode.
    """
    if "\x00" in text:
        raise ValueError("must not contain the character NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode, without half surrogate pairs") from error
    return text


def without_addresses(text: str) -> str:
    """The text without addresses of machines behind us, and what keys they may hold: those are for the log."""
    return _ADDRESS.sub("a server", text)


def printable(text: str) -> str:
    """The text with what UTF-8 can't encode replaced."""
    return text.encode(errors="replace").decode()


Text = Annotated[str, AfterValidator(storable)]
