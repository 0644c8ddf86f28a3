"""Addresses as they may be shown: no password in them, whatever its signs."""

import pytest

from feedback.addresses import is_hidden, without_password
from feedback.ledger import Ledger, LedgerError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://ann:hunter2@db:5432/h", "postgresql+psycopg://ann:***@db:5432/h"),
        ("postgresql://ann:hun@ter:2/@db/h", "postgresql://ann:***@db/h"),
        ("postgresql://ann:hun\nter@db/h", "postgresql://ann:***@db/h"),
        ("postgresql://:hunter2@db/h", "postgresql://:***@db/h"),
        (
            "postgresql://db/h?user=ann&password=hunter2&sslpassword=x&passfile=/p",
            "postgresql://db/h?user=ann&password=***&sslpassword=***&passfile=/p",
        ),
        ("postgresql://ann:hunter2@/h?host=db&PASSWORD=x", "postgresql://ann:***@/h?host=db&PASSWORD=***"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert is_hidden(shown)
    assert not is_hidden(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann@db:5432/h",
        "postgresql://db/h?application_name=a",
        "sqlite:////a:b@c/ledger",
        "sqlite:///a:b@c",
        "",
    ],
)
def test_what_has_no_password_is_shown_as_it_is(url: str) -> None:
    assert without_password(url) == url
    assert not is_hidden(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//ann:hunter2@db/h",
        "postgresql://ann:hunter2@db:port/h",
        "postgresql://ann:hunter2@127.0.0.1:1/h?connect_timeout=1",
        "postgresql://127.0.0.1:1/h?password=hunter2&connect_timeout=1",
    ],
)
def test_no_error_of_the_ledger_shows_a_password(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url)
    assert "hunter2" not in str(caught.value)
