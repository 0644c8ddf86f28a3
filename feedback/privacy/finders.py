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
from itertools import product, takewhile
from unicodedata import category

from feedback.privacy.config import Kind

_EMAIL = re.compile(r"[^\s@<>()\[\]{},;:\"'|]{1,64}@[^\s@<>()\[\]{},;:\"'|/?#]{1,255}")
_LOCAL_END = re.compile(r"(?:[\w%+-]+(?:\.[\w%+-]+)*)?\Z")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){10,31}")
_CARD = re.compile(r"(?<![0-9])[2-6][0-9](?:[ -]?[0-9]){10,17}(?![0-9])")
_DIGITS = re.compile(r"[0-9]+")
_SHORTEST_GROUP = 4
"""Digits that stand together at a card's beginning, at least."""
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

    def is_one(local: str, domain: str) -> bool:
        if "." not in domain:
            return False
        try:
            validate_email(f"{local}@{domain}", check_deliverability=False, globally_deliverable=False)
        except EmailNotValidError:
            return False
        return True

    at = 0
    while match := _EMAIL.search(text, at):
        local, _, domain = match.group().partition("@")
        at = match.start() + len(local) + 1
        # As it stands; else without what stands around it: quotes, dashes, the marks of code.
        locals_ = (local, _LOCAL_END.search(local).group())  # type: ignore[union-attr]  # it matches nothing, too
        domains = (domain.rstrip(".!?*_-"), _domain_in(domain).rstrip(".-"))
        for before, after in dict.fromkeys(product(locals_, domains)):
            if is_one(before, after):
                yield at - 1 - len(before), (at := at + len(after))
                break


def _domain_in(text: str) -> str:
    """What of it can be a domain: letters of any script with their marks, digits, dots and hyphens."""
    fit = takewhile(lambda one: one.isalnum() or one in ".-" or category(one).startswith("M"), text)
    return "".join(fit)


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

    at = 0
    while match := _CARD.search(text, at):
        start, end = match.span()
        groups = [each.end() for each in _DIGITS.finditer(text, start, end)]
        # Its expiry or the code from its back may follow, and a day or a month stand before.
        ends = (end for end in reversed(groups) if 13 <= sum(map(str.isdigit, text[start:end])) <= 19)
        found = next((end for end in ends if luhn.is_valid(re.sub(r"[ -]", "", text[start:end]))), None)
        if found is not None:
            yield start, found
        first = groups[0]
        at = found or (first if first - start < _SHORTEST_GROUP else end)


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
