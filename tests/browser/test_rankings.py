"""Three and four answers on the chat page: ranked by keys and by taps, ties too, on every screen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from serve.config import ChatConfig
from tests.browser.conftest import PHONE, WIDE, OpenPage
from tests.browser.site import ADAPTER, Site
from tests.browser.test_accessibility import violations
from tests.browser.test_chat import ask, last_request

pytestmark = pytest.mark.browser


@pytest.fixture
def three(site: Site) -> Site:
    object.__setattr__(site.deps.config, "chat", ChatConfig(answers=3))
    return site


def ballot(page: Page) -> None:
    expect(page.get_by_role("heading", name="Put them in order, the best first")).to_be_visible()
    page.wait_for_timeout(300)  # digits just after the ballot came up are taken for typing


def sent(page: Page, act: Any) -> dict[str, Any]:
    with page.expect_request("**/v1/votes") as caught:
        act()
    found: dict[str, Any] = json.loads(caught.value.post_data or "{}")
    return found


def test_answers_are_ranked_by_tapping_them_in_order(open_page: OpenPage, three: Site) -> None:
    page = open_page()
    expect(page.get_by_role("heading", name="Three answers. You decide.")).to_be_visible()
    ask(page)
    ballot(page)
    assert page.get_by_role("article").count() == 3
    assert ADAPTER not in page.content()
    vote = page.get_by_role("button", name="Vote", exact=True)
    expect(vote).to_have_attribute("aria-disabled", "true")
    page.get_by_role("button", name="Answer B", exact=True).click()
    expect(page.get_by_role("button", name="Answer B, 1st")).to_have_attribute("aria-pressed", "true")
    expect(vote).to_have_attribute("aria-disabled", "true")
    page.get_by_role("button", name="Answer C", exact=True).click()
    expect(page.get_by_role("button", name="Answer A, 3rd")).to_have_attribute("aria-pressed", "false")  # what is left
    expect(page.get_by_role("article", name="Answer C").get_by_text("2nd")).to_be_visible()
    assert sent(page, vote.click)["ranking"] == [["b"], ["c"], ["a"]]
    expect(page.get_by_text("Your order: B, then C, then A.")).to_be_visible()
    names = [page.get_by_role("article", name=f"Answer {side}").locator(".who").inner_text() for side in "ABC"]
    assert set(names) == {"base", ADAPTER}
    assert [kept.ranking for kept in three.deps.ledger.votes_between()] == [(("b",), ("c",), ("a",))]
    text = page.get_by_role("article", name="Answer B").locator(".answer").inner_text()
    assert ("Rayleigh" in last_request(page)[1]["content"]) == ("Rayleigh" in text)
    ballot(page)
    page.reload()
    expect(page.get_by_text("Your order: B, then C, then A.")).to_be_visible()
    ballot(page)


def test_the_keyboard_alone_is_enough_ties_too(open_page: OpenPage, three: Site) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    expect(page.locator(".ballot")).to_be_focused()
    live = page.locator("#live")
    page.keyboard.press("3")
    expect(live).to_have_text("C is 1st.")
    page.keyboard.press("1")
    page.keyboard.press("Backspace")
    expect(live).to_have_text("The order so far is C.")
    page.keyboard.press("=")
    expect(live).to_have_text("The next one shares the place of C.")
    page.keyboard.press("2")
    expect(live).to_have_text("B is 1st. The order is B and C, then A. Enter votes.")
    assert sent(page, lambda: page.keyboard.press("Enter"))["ranking"] == [["c", "b"], ["a"]]
    expect(page.get_by_text("Your order: B and C, then A.")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()
    expect(page.get_by_role("article", name="Answer A").get_by_text("3rd")).to_be_visible()

    page.keyboard.type("Another")
    page.keyboard.press("Enter")
    ballot(page)
    assert sent(page, lambda: page.keyboard.press("t"))["choice"] == "tie"
    expect(page.get_by_text("You found all alike.")).to_be_visible()
    page.keyboard.type("A third")
    page.keyboard.press("Enter")
    ballot(page)
    page.keyboard.press("Enter")  # nothing has a place yet
    expect(live).to_have_text("Give more answers a place first.")
    assert sent(page, lambda: page.keyboard.press("x"))["choice"] == "both_bad"
    expect(page.get_by_text("You found all bad.")).to_be_visible()
    assert three.votes() == 3


def test_an_answer_tapped_again_is_taken_back_and_all_in_one_place_is_a_tie(open_page: OpenPage, three: Site) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Answer A", exact=True).click()
    page.get_by_role("button", name="Answer A, 1st").click()
    expect(page.get_by_role("button", name="Answer A", exact=True).first).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Answer B", exact=True).click()
    for side in "AC":
        page.get_by_role("button", name="The next one shares the place").click()
        page.locator(f'.pick[data-choice="{side.lower()}"]').click()
    assert sent(page, page.get_by_role("button", name="Vote", exact=True).click)["choice"] == "tie"


def test_a_digit_typed_into_a_comment_ranks_nothing(open_page: OpenPage, three: Site) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Comment").click()
    page.keyboard.type("1 and 2 = x")
    expect(page.get_by_label("Comment", exact=True)).to_have_value("1 and 2 = x")
    assert page.locator('.pick[aria-pressed="true"]').count() == 0
    assert three.votes() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_in_any_state(open_page: OpenPage, three: Site, screen: dict[str, Any], scheme: str) -> None:
    page = open_page(color_scheme=scheme, **screen)
    three.hold()
    ask(page)
    page.get_by_role("button", name="Stop").wait_for()
    assert violations(page) == []
    three.let_go()
    ballot(page)
    page.locator('.pick[data-choice="b"]').click()
    page.get_by_role("button", name="The next one shares the place").click()
    assert violations(page) == []
    page.locator('.pick[data-choice="c"]').click()
    assert violations(page) == []
    page.get_by_role("button", name="Vote", exact=True).click()
    page.get_by_text("Your order: B and C, then A.").wait_for()
    assert violations(page) == []


@pytest.mark.parametrize("answers", [3, 4])
def test_on_a_phone_they_stand_below_each_other(open_page: OpenPage, site: Site, answers: int) -> None:
    object.__setattr__(site.deps.config, "chat", ChatConfig(answers=answers))
    page = open_page(**PHONE)
    ask(page, "A long one")
    ballot(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = page.locator(".card").evaluate_all("all => all.map((e) => [e.getBoundingClientRect().left, e.offsetTop])")
    assert len(boxes) == answers
    assert len({left for left, _ in boxes}) == 1
    assert [top for _, top in boxes] == sorted({top for _, top in boxes})
    expect(page.get_by_role("button", name="Vote", exact=True)).to_be_in_viewport(ratio=1)
    sizes = page.locator(".pick, .acts .primary").evaluate_all(
        "all => all.map((b) => b.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 40


def test_four_stand_side_by_side_where_there_is_room(open_page: OpenPage, site: Site) -> None:
    object.__setattr__(site.deps.config, "chat", ChatConfig(answers=4))
    page = open_page(viewport={"width": 1600, "height": 900})
    ask(page)
    ballot(page)
    tops = page.locator(".card").evaluate_all("all => all.map((e) => e.getBoundingClientRect().top)")
    assert len(set(tops)) == 1
    page.keyboard.press("4")
    page.keyboard.press("2")
    page.keyboard.press("1")
    assert sent(page, lambda: page.keyboard.press("Enter"))["ranking"] == [["d"], ["b"], ["a"], ["c"]]
