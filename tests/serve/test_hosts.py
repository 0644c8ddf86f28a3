"""A web page that points its own name at this machine is not answered."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve.app import create_app
from serve.config import ServeConfig
from serve.hosts import TrustedHosts, is_loopback
from tests.serve.conftest import MakeDeps, client_of
from tests.serve.test_direct import post, serving, vote

LOCAL = ["localhost", "localhost:8000", "LocalHost.", "chat.localhost:1", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000"]
FOREIGN = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", ""]
ODD = ["[::1", "localhost@evil.example", "evil.example, localhost", "a" * 400, "\xff", "127.0.0.1 evil.example"]


def trusted(config: ServeConfig, *hosts: str) -> bool:
    headers = [(b"accept", b"*/*"), *((b"host", host.encode("latin-1")) for host in hosts)]
    return TrustedHosts(config).trust({"type": "http", "headers": headers})


@pytest.mark.parametrize("host", LOCAL)
def test_on_a_loopback_address_its_own_names_are_trusted(host: str) -> None:
    assert trusted(ServeConfig(), host)


@pytest.mark.parametrize("host", [*FOREIGN, *(odd for odd in ODD if odd != "[::1")])
def test_on_a_loopback_address_no_other_name_is(host: str) -> None:
    assert not trusted(ServeConfig(), host)


def test_an_address_is_no_name_that_somebody_could_point_here() -> None:
    assert trusted(ServeConfig(trusted_hosts=("chat.example.org",)), "10.1.2.3:8000")


def test_what_was_asked_under_two_names_is_for_both() -> None:
    assert not trusted(ServeConfig(), "localhost", "evil.example")
    assert trusted(ServeConfig(), "localhost", "127.0.0.1")


def test_no_browser_leaves_the_name_out() -> None:
    assert trusted(ServeConfig())


@pytest.mark.parametrize("host", [*LOCAL, *FOREIGN])
def test_on_a_public_address_any_name_is_trusted_until_some_are_given(host: str) -> None:
    assert trusted(ServeConfig(host="0.0.0.0"), host)
    given = ServeConfig(host="0.0.0.0", trusted_hosts=("Chat.example.org",))
    assert trusted(given, "chat.example.org:443")
    assert trusted(given, host) == (host in LOCAL)


def test_any_name_may_be_asked_for_where_that_is_said() -> None:
    assert trusted(ServeConfig(trusted_hosts=("*",)), "evil.example")


@pytest.mark.parametrize("host", ["http://chat.example.org", "chat.example.org:8000", "*.example.org", ""])
def test_what_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match=r"write it as chat\.example\.org"):
        ServeConfig(trusted_hosts=(host,))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("Localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("chat.example.org", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("path", ["/", "/v1/loop", "/v1/models", "/metrics", "/healthz", "/web/js/chat.js", "/nothing"])
async def test_nothing_is_told_under_a_foreign_name(make_deps: MakeDeps, path: str) -> None:
    async with client_of(create_app(make_deps()), Host="evil.example:8000") as client:
        answer = await client.get(path)
    assert answer.status_code == 421
    assert "serve.trusted_hosts" in answer.text
    assert "evil" not in answer.text
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_vote_under_a_foreign_name_is_refused_on_its_own_way_too(make_deps: MakeDeps) -> None:
    deps = make_deps()
    async with serving(deps) as site:
        pair_id, line = await site.a_pair(), await site.line()
        for path, body in (("/v1/votes", vote(pair_id)), ("/v1/thumbs", {"answer_id": "a", "thumb": "up"})):
            status, headers, told = await line.ask(*post(body, path, host="evil.example"))
            assert (status, headers["content-type"]) == (421, "application/problem+json")
            assert b"serve.trusted_hosts" in told
        assert deps.ledger.counts().votes == 0
        assert (await line.ask(*post(vote(pair_id))))[0] == 201
