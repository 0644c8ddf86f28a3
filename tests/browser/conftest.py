"""Chromium, and pages whose every console error fails their test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.site import Site, serving

ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000
"""Generous, for a machine that trains and serves beside the tests; nothing waits so long where all is well."""
WIDE = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def chromium() -> str:
    """Chromium's path: `HUSTINGS_CHROMIUM`, or the first on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("HUSTINGS_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail("no Chromium: `apt-get install chromium`, or name one in HUSTINGS_CHROMIUM")
    return found


# Of the package, not of the session: Playwright's synchronous interface keeps an event loop running on this thread, and
# asynchronous tests elsewhere could not run beside it.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=list(ARGS))
        yield launched
        launched.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path / "data") as running:
        yield running


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[OpenPage]:
    """Open a page of the site in a new, empty profile. `expected` are console errors that the test provokes."""
    contexts = []
    faults: list[str] = []

    def open_it(path: str = "", *, expected: tuple[str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(**({"reduced_motion": "reduce"} | WIDE | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()

        def listen(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"} and not any(part in message.text for part in expected):
                faults.append(message.text)

        page.on("console", listen)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(site.url + path)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []
