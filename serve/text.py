"""Text from outside, checked once: what can't be stored or encoded is refused at the door."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


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


def printable(text: str) -> str:
    """The text with what UTF-8 can't encode replaced."""
    return text.encode(errors="replace").decode()


Text = Annotated[str, AfterValidator(storable)]
