"""Where personal data stand in a text. A pattern proposes, a library that knows the thing decides.

Emails: email-validator. Cards and IBANs: python-stdnum (check digits, national formats). Phones: phonenumbers. Keys:
detect-secrets. IP addresses: the standard library; only public ones tell of a person.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from feedback.privacy.config import Kind

_EMAIL = re.compile(r"[^\s@<>()\[\]{},;:\"'|]{1,64}@[^\s@<>()\[\]{},;:\"'|/?#]{1,255}")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){10,31}")
_CARD = re.compile(r"(?<![0-9])[2-6][0-9](?:[ -]?[0-9]){10,17}(?![0-9])")
_IP4 = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\.?[0-9])")
_IP6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z:])")
_SEVEN_DIGITS = re.compile(r"[0-9](?:[^0-9\n]{0,4}[0-9]){6}")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_PLUGINS = (
    "artifactory.ArtifactoryDetector",
    "aws.AWSKeyDetector",
    "azure_storage_key.AzureStorageKeyDetector",
    "basic_auth.BasicAuthDetector",
    "discord.DiscordBotTokenDetector",
    "github_token.GitHubTokenDetector",
    "gitlab_token.GitLabTokenDetector",
    "jwt.JwtTokenDetector",
    "mailchimp.MailchimpDetector",
    "npm.NpmDetector",
    "openai.OpenAIDetector",
    "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector",
    "slack.SlackDetector",
    "square_oauth.SquareOAuthDetector",
    "stripe.StripeDetector",
    "telegram_token.TelegramBotTokenDetector",
    "twilio.TwilioKeyDetector",
)
"""Detectors of keys with a form of their own; those that guess from entropy or a word before take prose for keys."""


@dataclass(frozen=True, slots=True)
class Span:
    """Personal data at `text[start:end]`."""

    start: int
    end: int
    kind: Kind


def find(text: str, kinds: Collection[Kind], phone_regions: Sequence[str]) -> list[Span]:
    """Where personal data stand, from left to right, none within another.

    Args:
        kinds: what to look for.
        phone_regions: whose national phone numbers are known.
    """
    taken: list[Span] = []  # from left to right
    for kind, finder in _FINDERS.items():
        if kind not in kinds:
            continue
        places = _phones(text, phone_regions) if kind == "phone" else finder(text)
        for start, end in places:
            # None of them overlap, so that only the two beside it can be in its way: a text may hold thousands.
            at = bisect_left(taken, start, key=lambda span: span.start)
            if (at == 0 or taken[at - 1].end <= start) and (at == len(taken) or end <= taken[at].start):
                taken.insert(at, Span(start, end, kind))
    return taken


def _keys(text: str) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _PRIVATE_KEY.finditer(text))
    for pattern in _key_patterns():
        yield from (match.span() for match in pattern.finditer(text))


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    from email_validator import EmailNotValidError, validate_email

    for match in _EMAIL.finditer(text):
        candidate = match.group().rstrip(".!?*_-")
        try:
            validate_email(candidate, check_deliverability=False, globally_deliverable=False)
        except EmailNotValidError:
            continue
        if "." in candidate.partition("@")[2]:
            yield match.start(), match.start() + len(candidate)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import iban

    at = 0
    while match := _IBAN.search(text, at):
        # The pattern runs on into the words behind; national formats have one length each.
        ends = [end for end in range(match.end(), match.start() + 14, -1) if text[end - 1].isalnum()]
        at = next((end for end in ends if iban.is_valid(text[match.start() : end])), 0)
        if at:
            yield match.start(), at
        else:
            at = match.start() + 2


def _cards(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if 13 <= len(digits) <= 19 and luhn.is_valid(digits):
            yield match.span()


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IP4, _IP6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match.group())
            except ValueError:
                continue
            if address.is_global:
                yield match.span()


def _phones(text: str, regions: Sequence[str] = ()) -> Iterator[tuple[int, int]]:
    if not _SEVEN_DIGITS.search(text):
        return
    import phonenumbers

    for region in (None, *regions):
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID):
            yield match.start, match.end


@cache
def _key_patterns() -> tuple[re.Pattern[str], ...]:
    from importlib import import_module

    patterns: list[re.Pattern[str]] = []
    for name in _PLUGINS:
        module, _, detector = name.partition(".")
        # Not its analyze_string: that tells only the first group of a match, which may be a mere prefix.
        patterns += getattr(import_module(f"detect_secrets.plugins.{module}"), detector)().denylist
    return tuple(patterns)


_FINDERS: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
    "key": _keys,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _ips,
    "phone": _phones,
}
"""In the order of who wins where two see something: a card's digits may look like a phone number."""
