"""What is found, and what must not be taken for personal data. Numbers are published examples of their standards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.privacy import Kind, PrivacyConfig, Span, find, finders

POLICY = PrivacyConfig()


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find(text, POLICY.kinds, POLICY.phone_regions)]


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("Write to ann.lee+list@mail.example.co.uk.", "email", "ann.lee+list@mail.example.co.uk"),
        ("(bob@example.com)", "email", "bob@example.com"),
        ("Grüße an jörg@bücher.example!", "email", "jörg@bücher.example"),
        ("is it ann@example.com\N{RIGHT DOUBLE QUOTATION MARK}?", "email", "ann@example.com"),
        ("the key `user`, as in ann@example.com`", "email", "ann@example.com"),
        ("ann@example.com\N{EM DASH}ask her", "email", "ann@example.com"),
        ("ann@example.com\N{HORIZONTAL ELLIPSIS}", "email", "ann@example.com"),
        ("mailed to...ann@example.com", "email", "ann@example.com"),
        ("a?to=ann@example.com&cc=", "email", "a?to=ann@example.com"),
        (r"From: ann@example.com\nHello", "email", "ann@example.com"),
        ("my card 4111 1111 1111 1111 expires soon", "card", "4111 1111 1111 1111"),
        ("4111 1111 1111 1111 12/27", "card", "4111 1111 1111 1111"),
        ("4111111111111111 123", "card", "4111111111111111"),
        ("02/27 4111-1111-1111-1111 123", "card", "4111-1111-1111-1111"),
        ("amex 378282246310005.", "card", "378282246310005"),
        ("pay to DE89 3704 0044 0532 0130 00 before Friday", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB29NWBK60161331926819", "iban", "GB29NWBK60161331926819"),
        ("call +49 30 901820 or so", "phone", "+49 30 901820"),
        ("call (415) 555-2671 now", "phone", "(415) 555-2671"),
        ("ring 020 7183 8750", "phone", "020 7183 8750"),
        ("from 93.184.216.34 again", "ip", "93.184.216.34"),
        ("at 2606:2800:220:1:248:1893:25c8:1946?", "ip", "2606:2800:220:1:248:1893:25c8:1946"),
        ("key AKIAIOSFODNN7EXAMPLE here", "key", "AKIAIOSFODNN7EXAMPLE"),
        ("ghp_" + "a1B2" * 9, "key", "ghp_" + "a1B2" * 9),
        ("git clone https://ann:hunter22@git.example.com/x", "key", "://ann:hunter22@"),
        ("sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "key", "sk_live_4eC39HqLyjWDarjtT1zdp7dc"),
    ],
)
def test_each_kind_is_found_where_it_stands(text: str, kind: str, what: str) -> None:
    assert found(text) == [(kind, what)]


def test_addresses_that_touch_are_found_each() -> None:
    assert found("ann@example.com&bob@example.com") == [("email", "ann@example.com"), ("email", "&bob@example.com")]
    assert found("`ann@example.com`,`bob@example.com`") == [
        ("email", "`ann@example.com"),
        ("email", "`bob@example.com"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How do I keep bread fresh for 10 days at 20 degrees?",
        "Pi is 3.14159265358979323846.",
        "The meeting is at 12:30:45 on 2026-11-21.",
        "Order 4111 1111 1111 1112 is no card: its check digit is wrong.",
        "The server listens on 127.0.0.1 and on 192.168.1.20, ::1 too.",
        "Use a @decorator, or user@localhost in a shell.",
        "DE00 1234 is no account.",
        "The population is 8,123,456,789 and grew by 1.1% in 1990-2000.",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert found(text) == []


def test_a_whole_private_key_goes() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX\n-----END RSA PRIVATE KEY-----"
    assert found(f"Is this safe?\n{key}\nI hope") == [("key", key)]


def test_several_are_told_from_left_to_right_and_none_twice() -> None:
    text = "a@example.com, a@example.com and 4111111111111111"
    assert [kind for kind, _ in found(text)] == ["email", "email", "card"]


def test_only_the_kinds_asked_for_are_sought() -> None:
    assert find("a@example.com from 93.184.216.34", ("ip",), ()) == find(
        "............. from 93.184.216.34", ("ip",), ()
    )


@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12), min_size=6, max_size=6))
def test_what_overlaps_something_found_before_is_left_to_it(places: list[list[tuple[int, int]]]) -> None:
    found = dict(zip(finders._FINDERS, places, strict=True))
    told: list[Span] = []
    for kind, spans in found.items():
        for start, length in spans:
            if not any(start < one.end and one.start < start + length for one in told):
                told.append(Span(start, start + length, kind))

    def finder(kind: Kind) -> Callable[..., Iterator[tuple[int, int]]]:
        return lambda *_: ((start, start + length) for start, length in found[kind])

    with (
        patch.object(finders, "_FINDERS", {kind: finder(kind) for kind in found}),
        patch.object(finders, "_phones", finder("phone")),
    ):
        assert find("", tuple(found), ()) == sorted(told, key=lambda span: span.start)
