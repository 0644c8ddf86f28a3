"""What becomes of personal data, field by field."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["key", "email", "iban", "card", "ip", "phone"]
Action = Literal["redact", "drop", "keep"]


class PrivacyConfig(BaseModel):
    """`[feedback.privacy]`. Actions: `redact` puts a mark such as [EMAIL] in its place, `drop` empties the whole text,
    `keep` leaves it as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: Action = "redact"
    """Personal data in what people and the system wrote into a conversation."""
    answers: Action = "redact"
    """Personal data in the answers that were voted on."""
    comment: Action = "redact"
    """Personal data in a vote's comment and reasons."""
    edited: Action = "redact"
    """Personal data in an answer that a voter wrote."""
    kinds: tuple[Kind, ...] = ("key", "email", "iban", "card", "ip", "phone")
    """What is looked for: API keys and other credentials, addresses, account and card numbers, phone numbers."""
    phone_regions: tuple[str, ...] = ("US", "GB", "DE", "FR")
    """Countries (ISO 3166) whose national phone numbers are known; numbers with +49 and the like always are."""
