"""Prepared pairs on the chat page."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.site import Site
from tests.browser.test_accessibility import violations
from tests.serve.test_reviews import put

pytestmark = pytest.mark.browser


def test_prepared_answers_are_judged_one_after_the_other(open_page: OpenPage, site: Site) -> None:
    put(site.deps.paths, 2, fingerprint=site.deps.base_fingerprint())
    page = open_page()
    expect(page.get_by_text("Answers lie prepared")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Judge prepared answers").click()
    expect(page.get_by_role("heading", name="Which answer is better?")).to_be_visible()
    expect(page.locator(".turn h2")).to_contain_text("Question ")
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_text("Both came from the base model, sampled twice.")).to_be_visible()
    page.get_by_role("button", name="Judge another").click()
    expect(page.get_by_role("heading", name="Which answer is better?")).to_be_visible()
    page.get_by_role("button", name="Tie").click()
    page.get_by_role("button", name="Judge another").click()  # none is left
    expect(page.get_by_role("heading", name="Two answers. You decide.")).to_be_visible()
    expect(page.get_by_text("Answers lie prepared")).to_be_hidden()
    assert [vote.pair.source for vote in site.deps.ledger.votes_between()] == ["review", "review"]


def test_without_a_pool_nothing_is_offered(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.get_by_role("heading", name="Two answers. You decide.")).to_be_visible()
    expect(page.get_by_role("button", name="Judge prepared answers")).to_be_hidden()
