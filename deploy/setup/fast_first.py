"""A pytest plug-in (`-p deploy.setup.fast_first`): fast tests before slow ones, so that a plain fault shows at once."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable sort: unmarked tests, then those of a browser, then the slow ones."""
    items.sort(key=_weight)


def _weight(item: pytest.Item) -> int:
    return 2 if item.get_closest_marker("slow") else 1 if item.get_closest_marker("browser") else 0
