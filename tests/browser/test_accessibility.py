"""axe-core over every state of both pages: WCAG 2.2 A and AA, and its best practices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from serve.config import ChatConfig
from tests.browser.conftest import PHONE, WIDE, OpenPage
from tests.browser.samples import LOOP, STANDINGS
from tests.browser.site import Site

pytestmark = pytest.mark.browser


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{fault['id']}: {node['target']} {node['failureSummary']}" for fault in found for node in fault["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_chat_page_in_every_state(open_page: OpenPage, site: Site, screen: dict[str, Any], scheme: str) -> None:
    page = open_page(color_scheme=scheme, **screen)
    assert violations(page) == []

    site.hold()
    page.get_by_label("Your question").fill("Why is the sky blue?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Ask again").wait_for()
    assert violations(page) == []

    site.let_go()
    page.get_by_role("button", name="Ask again").click()
    page.get_by_role("heading", name="Which answer is better?").wait_for()
    page.get_by_role("button", name="Clear", exact=True).click()
    page.get_by_role("button", name="Comment").click()
    page.get_by_role("button", name="Write a better one").click()
    assert violations(page) == []
    page.get_by_label("A better answer").fill("# Mine\n\n| a | b |\n|---|---|\n| 1 | `2` |")
    page.get_by_role("button", name="B is better").click()
    page.get_by_text("You preferred B.").wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="History").click()
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_loop_page(open_page: OpenPage, screen: dict[str, Any], scheme: str) -> None:
    page = open_page("healthz", color_scheme=scheme, **screen)
    state = copy.deepcopy(LOOP)
    state["training"]["samples"] = [{"prompt": "Hello?", "before": "Yes.", "after": "Hello to you!"}]
    page.route("**/v1/leaderboard", lambda route: route.fulfill(json=STANDINGS))
    page.route("**/v1/loop", lambda route: route.fulfill(json=state))
    page.goto(page.url.replace("healthz", "loop"))
    page.get_by_text("The same as a table").click()
    assert violations(page) == []
    page.get_by_role("button", name="Promote policy-000004").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []


@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_one_answer_with_thumbs(open_page: OpenPage, site: Site, screen: dict[str, Any]) -> None:
    object.__setattr__(site.deps.config, "chat", ChatConfig(mode="chat", paired_share=0.0))
    page = open_page(**screen)
    page.get_by_label("Your question").fill("Why is the sky blue?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Good answer").wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_text("You didn't like it.").wait_for()
    assert violations(page) == []
