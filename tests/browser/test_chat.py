"""The chat page in a real browser, on the real app."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from serve.config import ChatConfig
from serve.engines.base import EngineOverloaded
from tests.browser.conftest import PHONE, OpenPage
from tests.browser.samples import RAYLEIGH
from tests.browser.site import ADAPTER, Site

pytestmark = pytest.mark.browser

QUESTION = "Why is the sky blue?"


def ask(page: Page, question: str = QUESTION) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")


def ballot(page: Page) -> None:
    expect(page.get_by_role("heading", name="Which answer is better?")).to_be_visible()


def last_request(page: Page) -> list[dict[str, str]]:
    """Messages of the next pair that the page asks for."""
    with page.expect_request("**/v1/turns") as caught:
        ask(page, "And sunsets?")
    messages: list[dict[str, str]] = json.loads(caught.value.post_data or "{}")["messages"]
    return messages


def test_a_person_asks_reads_votes_by_mouse_and_goes_on_with_the_better_answer(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    page.locator(".suggestions button").first.click()
    ballot(page)
    chosen = page.get_by_role("article", name="Answer B")
    text = chosen.locator(".answer").inner_text()
    page.get_by_role("button", name="Clear", exact=True).click()
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_text("You preferred B.")).to_be_visible()
    expect(chosen.get_by_text("Your choice")).to_be_visible()
    names = {page.get_by_role("article", name=f"Answer {side}").locator(".who").inner_text() for side in "AB"}
    assert names == {"base", ADAPTER}
    assert site.votes() == 1

    messages = last_request(page)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert ("Rayleigh" in messages[1]["content"]) == ("Rayleigh" in text)
    ballot(page)
    assert len(page.locator(".turn").all()) == 2


def test_a_conversation_goes_on_for_who_has_lost_the_cookie_that_began_it(open_page: OpenPage, site: Site) -> None:
    page = open_page(expected=("403",))
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_text("You called it a tie.")).to_be_visible()
    page.context.clear_cookies()
    assert [message["role"] for message in last_request(page)] == ["user", "assistant", "user"]
    ballot(page)
    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_text("You called it a tie.")).to_have_count(2)
    assert site.votes() == 2


def test_nothing_tells_who_speaks_before_the_vote(open_page: OpenPage) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    assert ADAPTER not in page.content()


def test_the_keyboard_alone_is_enough(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the conversation")).to_be_focused()
    page.get_by_label("Your question").focus()
    page.keyboard.type("First line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    ballot(page)
    expect(page.locator(".turn h2")).to_have_text("You asked: First line\nsecond line")
    page.wait_for_timeout(300)  # digits just after the ballot came up are taken for typing
    page.keyboard.press("3")
    expect(page.get_by_text("You called it a tie.")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()

    page.keyboard.type("Another")
    page.keyboard.press("Enter")
    ballot(page)
    expect(page.locator(".ballot")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="B is better")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("You preferred B.")).to_be_visible()
    assert site.votes() == 2


def test_a_digit_typed_into_a_comment_is_no_vote(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Comment").click()
    page.wait_for_timeout(300)
    page.keyboard.type("1 and 4")
    expect(page.get_by_label("Comment", exact=True)).to_have_value("1 and 4")
    assert site.votes() == 0
    with page.expect_request("**/v1/votes") as caught:
        page.get_by_role("button", name="Both bad").click()
    sent = json.loads(caught.value.post_data or "{}")
    assert (sent["comment"], sent["choice"]) == ("1 and 4", "both_bad")


def test_after_both_bad_the_question_is_asked_along_with_the_next(open_page: OpenPage) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Both bad").click()
    expect(page.get_by_text("You found both bad.")).to_be_visible()
    assert last_request(page) == [{"role": "user", "content": f"{QUESTION}\n\nAnd sunsets?"}]


def test_an_edited_answer_goes_with_the_vote_and_into_the_conversation(open_page: OpenPage) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Write a better one").click()
    page.get_by_role("button", name="Start from A").click()
    assert page.get_by_label("A better answer").input_value() != ""
    page.get_by_label("A better answer").fill("Because of **scattering**.")
    page.get_by_role("button", name="A is better").click()
    expect(page.get_by_role("heading", name="Your answer")).to_be_visible()
    assert last_request(page)[1] == {"role": "assistant", "content": "Because of **scattering**."}


def test_escape_stops_both_answers_and_the_question_can_be_asked_again(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    site.hold()
    ask(page)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("article", name="Answer A")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped. These answers can't be voted on.")).to_be_visible()
    site.let_go()
    page.get_by_role("button", name="Ask again").click()
    ballot(page)
    assert len(page.locator(".turn").all()) == 1


def test_a_stream_that_breaks_says_so_and_is_retried(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    site.engine.fail_after = 40
    ask(page)
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_visible()
    site.engine.fail_after = None
    page.get_by_role("button", name="Ask again").click()
    ballot(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_refused_question_says_why_and_is_retried(open_page: OpenPage, site: Site) -> None:
    page = open_page(expected=("429",))
    site.engine.fail_after, site.engine.failure = 0, EngineOverloaded("Forty people wait already.")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("Forty people wait already.")
    site.engine.fail_after = None
    page.get_by_role("button", name="Ask again").click()
    ballot(page)


def test_a_question_asked_while_the_model_loads_is_kept_and_sent_when_it_is_ready(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page(expected=("503",))
    site.on_loop(site.deps.readiness.set_unready, "the model is still being loaded")
    ask(page)
    expect(page.locator("#writing")).to_contain_text("Your question is kept, and sent as soon as it is.")
    site.on_loop(site.deps.readiness.set_ready)
    ballot(page)
    expect(page.locator("#writing-text")).to_have_text("Two candidates are answering")


def test_a_question_that_waits_for_the_model_can_be_stopped(open_page: OpenPage, site: Site) -> None:
    page = open_page(expected=("503",))
    site.on_loop(site.deps.readiness.set_unready, "the model is still being loaded")
    ask(page)
    expect(page.locator("#writing")).to_contain_text("Your question is kept, and sent as soon as it is.")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()


def test_a_vote_that_was_not_saved_is_cast_again_and_counts_once(open_page: OpenPage, site: Site) -> None:
    page = open_page(expected=("503", "ERR_FAILED"))
    ask(page)
    ballot(page)
    page.route("**/v1/votes", lambda route: (route.fetch(), route.abort()))  # saved, but the answer is lost
    page.get_by_role("button", name="A is better").click()
    expect(page.get_by_role("alert")).to_contain_text("Your vote wasn't saved.")
    page.unroute("**/v1/votes")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("You preferred A.")).to_be_visible()
    assert site.votes() == 1


def test_a_hostile_answer_stays_inert(open_page: OpenPage) -> None:
    foreign = []
    page = open_page()
    page.on("request", lambda request: foreign.append(request.url) if "127.0.0.1" not in request.url else None)
    ask(page, "hostile")
    ballot(page)
    answer = page.locator(".card .answer").first
    assert page.evaluate("window.hacked") is None
    assert answer.locator("img, script, svg, iframe, style, form, input").count() == 0
    assert answer.locator("a").evaluate_all("links => links.map((a) => a.getAttribute('href'))") == [
        "https://example.org/",
        "https://evil.example/?q=secret",
    ]
    attributes = answer.locator("*").evaluate_all("all => all.flatMap((e) => e.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on") or name in {"style", "srcdoc"}]
    assert foreign == []


def test_the_conversation_survives_a_reload_with_its_open_vote(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.reload()
    ballot(page)
    page.get_by_role("button", name="A is better").click()
    expect(page.get_by_text("You preferred A.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("You preferred A.")).to_be_visible()
    assert site.votes() == 1


def test_a_new_conversation_leaves_the_old_one_in_the_history(open_page: OpenPage) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("heading", name="Two answers. You decide.")).to_be_visible()
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name=QUESTION).first.click()
    ballot(page)
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name=f"Forget: {QUESTION}").click()
    expect(page.get_by_text("Nothing yet.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Two answers. You decide.")).to_be_visible()


def test_copy_puts_the_markdown_on_the_clipboard(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    ask(page)
    ballot(page)
    page.get_by_role("article", name="Answer A").get_by_role("button").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "**" in copied


def test_two_samples_of_one_model_are_revealed_as_such(open_page: OpenPage, site: Site) -> None:
    site.on_loop(site.deps.office.switch, None)
    page = open_page()
    ask(page)
    ballot(page)
    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_text("Both came from the base model, sampled twice.")).to_be_visible()


def test_on_a_phone_answers_are_swiped_and_the_ballot_stays_in_view(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    ask(page, "A long one")
    ballot(page)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == 390
    expect(page.get_by_role("button", name="Both bad")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("heading", name="Answer A")).to_be_in_viewport()
    expect(page.get_by_role("heading", name="Answer B")).not_to_be_in_viewport()
    page.get_by_role("button", name="Answer B", exact=True).click()
    expect(page.get_by_role("heading", name="Answer B")).to_be_in_viewport()
    expect(page.get_by_role("button", name="Answer B", exact=True)).to_have_attribute("aria-pressed", "true")
    sizes = page.locator(".choices button").evaluate_all("all => all.map((b) => b.getBoundingClientRect().height)")
    assert min(sizes) >= 44
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_text("You preferred B.")).to_be_attached()


def test_a_reader_who_scrolls_up_is_left_alone(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    ask(page, "A long one")
    ballot(page)
    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_label("Your question")).to_be_visible()
    site.hold()
    ask(page, "Another long one")
    page.get_by_role("button", name="Stop").wait_for()
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -5000)
    # awaited in the page: Playwright's own waiting asks again by `eval`, which the page's policy forbids
    page.evaluate(
        "new Promise((top) => { const look = () => (scrollY ? requestAnimationFrame(look) : top()); look(); })"
    )
    site.let_go()
    ballot(page)
    assert page.evaluate("scrollY") == 0
    page.get_by_role("button", name="Go to the end").click()
    expect(page.get_by_role("button", name="Go to the end")).to_be_hidden()


def test_dark_mode_follows_the_system_until_it_is_chosen(open_page: OpenPage) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="dark")
    dark = page.evaluate(background)
    expect(page.get_by_role("button", name="Dark mode")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Dark mode").click()
    light = page.evaluate(background)
    assert dark == "rgb(18, 18, 21)"
    assert light == "rgb(248, 248, 246)"
    page.reload()
    assert page.evaluate(background) == light


def test_the_fakes_answers_are_what_the_page_shows(open_page: OpenPage) -> None:
    page = open_page()
    ask(page)
    ballot(page)
    shown = page.locator(".card .answer").all_inner_texts()
    plain = RAYLEIGH.split("\n\n")[0].replace("**", "")
    assert any(plain in text for text in shown)


def test_in_chat_mode_one_answer_comes_and_takes_a_thumb(open_page: OpenPage, site: Site) -> None:
    # The site is in arena mode; the page learns what it gets from the first event.
    object.__setattr__(site.deps.config, "chat", ChatConfig(mode="chat", paired_share=0.0))
    page = open_page()
    ask(page)
    alone = page.get_by_role("article", name="Answer", exact=True)
    expect(alone.locator(".answer")).to_contain_text("Rayleigh")
    expect(page.get_by_role("article")).to_have_count(1)
    expect(page.get_by_label("Your question")).to_be_visible()
    assert ADAPTER not in page.locator("#turns").inner_text()
    page.get_by_role("button", name="Good answer").click()
    expect(page.get_by_text("You liked it.")).to_be_visible()
    expect(alone.get_by_text(ADAPTER)).to_be_visible()
    expect(page.get_by_role("button", name="Bad answer")).to_be_disabled()
    assert site.deps.ledger.thumb_counts().up == 1
    messages = last_request(page)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    expect(page.get_by_role("button", name="Good answer")).to_have_count(2)
    page.reload()
    expect(page.get_by_text("You liked it.")).to_be_visible()
