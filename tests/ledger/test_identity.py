"""Secrets and pseudonyms."""

import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from feedback.identity import SecretError, load_or_make_secret, pseudonym

ENV = "HUSTINGS_TEST_SECRET"


def test_a_secret_is_made_once_and_only_we_can_read_it(tmp_path):
    path = tmp_path / "secrets" / "voter_key"
    made = load_or_make_secret(path, ENV)
    assert len(made) >= 32
    assert load_or_make_secret(path, ENV) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["voter_key"]


def test_whoever_starts_at_the_same_time_gets_the_same_secret(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: load_or_make_secret(tmp_path / "key", ENV), range(32)))
    assert len(found) == 1


def test_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(ENV, " a-secret-of-our-own\n")
    assert load_or_make_secret(tmp_path / "key", ENV) == "a-secret-of-our-own"
    assert not (tmp_path / "key").exists()


def test_a_weak_secret_is_refused_by_the_name_of_its_source(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("short")
    with pytest.raises(SecretError, match=re.escape(str(tmp_path / "key"))):
        load_or_make_secret(tmp_path / "key", ENV)
    monkeypatch.setenv(ENV, "")
    with pytest.raises(SecretError, match=ENV):
        load_or_make_secret(tmp_path / "key", ENV)


def test_a_secret_that_can_not_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SecretError, match=f"set {ENV}"):
        load_or_make_secret(tmp_path / "file" / "key", ENV)


def test_a_pseudonym_is_the_keyed_hash():
    # RFC 4231, test case 2: HMAC-SHA256 of this text under the key "Jefe" begins 5bdcc146bf60754e6a042426...
    assert pseudonym("Jefe", "what do ya want for nothing?") == "v_5bdcc146bf60754e6a042426"
    assert pseudonym("other", "token") != pseudonym("secret", "token")
