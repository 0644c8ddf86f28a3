import itertools

import pytest

from feedback.ledger import Ledger
from tests.postgres import find_binaries, running_postgres

_names = (f"ledger_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def postgres():
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql), so the ledger was NOT tested on it")
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    return request.getfixturevalue("postgres").new_database(next(_names))


@pytest.fixture
def ledger(url):
    opened = Ledger.open(url)
    yield opened
    opened.close()
