import pytest

from feedback.ledger import Ledger


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"


@pytest.fixture
def ledger(url):
    opened = Ledger.open(url)
    yield opened
    opened.close()
