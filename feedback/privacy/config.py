"""What becomes of personal data, field by field."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

Kind = Literal["key", "email", "iban", "card", "ip", "phone"]
Action = Literal["redact", "drop", "keep"]


_REGIONS = ("US", "GB", "DE", "FR")


def _known(regions: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers of a country that the finder doesn't know would never be found, and nobody told."""
    if regions != _REGIONS:
        from phonenumbers import SUPPORTED_REGIONS  # 20 ms, which the defaults need not take

        if unknown := sorted(set(regions) - set(SUPPORTED_REGIONS)):
            raise ValueError(
                f"{unknown[0]!r} is no country whose phone numbers are known; "
                "write ISO 3166 codes in capitals, such as GB for the United Kingdom"
            )
    return regions


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
    phone_regions: Annotated[tuple[str, ...], AfterValidator(_known)] = _REGIONS
    """Countries (ISO 3166) whose national phone numbers are known; numbers with +49 and the like always are."""
